//! The parts of a page: verdicts, tables, notes, figures.

use maud::{Markup, PreEscaped, html};

use crate::plot::{Figure, svg};

/// Widths of the two forms of a picture: for a phone of 400 pixels, less the margins, and for all else.
const WIDTHS: [(&str, u32); 2] = [("narrow", 360), ("wide", 780)];

/// How something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Pass,
    /// Not as it should.
    Fail,
    /// Not known.
    Unknown,
}

impl Outcome {
    /// Pass or fail.
    #[must_use]
    pub fn of(passed: bool) -> Self {
        if passed { Self::Pass } else { Self::Fail }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }

    /// `PASS`, `FAIL` or `NOT MEASURED`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Unknown => "NOT MEASURED",
        }
    }
}

/// The word for an outcome, in its colour.
#[must_use]
pub fn badge(outcome: Outcome) -> Markup {
    html! { span class={ "badge " (outcome.class()) } { (outcome.text()) } }
}

/// A card: an outcome, what it is about, the figure that decided, and a line of explanation.
#[must_use]
pub fn card(outcome: Outcome, title: &str, value: &str, detail: &str) -> Markup {
    html! {
        div class={ "card " (outcome.class()) } {
            (badge(outcome)) " " (title)
            div class="value" { (value) }
            div class="soft" { (detail) }
        }
    }
}

/// Cards beside each other where there is room.
#[must_use]
pub fn cards(cards: &[Markup]) -> Markup {
    html! { div class="cards" { @for card in cards { (card) } } }
}

/// A remark.
#[must_use]
pub fn note(text: &str) -> Markup {
    html! { div class="note" { (text) } }
}

/// A remark that something is wrong or doubtful.
#[must_use]
pub fn warning(text: &str) -> Markup {
    html! { div class="note warning" { (text) } }
}

/// A table of text and numbers. It scrolls by itself where it is wider than the page.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, bool)>,
    rows: Vec<(bool, Vec<Markup>)>,
}

impl Table {
    /// A table without rows; columns are named, and marked where they hold numbers.
    #[must_use]
    pub fn new(columns: &[(&str, bool)]) -> Self {
        Self { columns: columns.iter().map(|&(n, r)| (n.to_owned(), r)).collect(), rows: Vec::new() }
    }

    /// Appends a row of text.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.markup(cells.into_iter().map(|cell| html! { (cell.as_ref()) }).collect());
    }

    /// Appends a row of text that stands out.
    pub fn marked<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push((true, cells.into_iter().map(|cell| html! { (cell.as_ref()) }).collect()));
    }

    /// Appends a row of markup.
    pub fn markup(&mut self, cells: Vec<Markup>) {
        self.rows.push((false, cells));
    }

    /// The table.
    #[must_use]
    pub fn render(&self) -> Markup {
        let class = |column: usize| {
            self.columns.get(column).is_some_and(|(_, right)| *right).then_some("number")
        };
        html! {
            div class="scroll" tabindex="0" {
                table {
                    thead { tr { @for (i, (name, _)) in self.columns.iter().enumerate() { th class=[class(i)] { (name) } } } }
                    tbody {
                        @for (marked, cells) in &self.rows {
                            tr class=[marked.then_some("marked")] {
                                @for (i, cell) in cells.iter().enumerate() { td class=[class(i)] { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A picture with its caption; `description` is what a reader hears who does not see it.
#[must_use]
pub fn figure(picture: &dyn Figure, description: &str, caption: &str) -> Markup {
    html! {
        figure {
            @for (class, width) in WIDTHS {
                div class=(class) role="img" aria-label=(description) { (PreEscaped(svg(picture, width))) }
            }
            figcaption { (caption) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_numbers_aligned() {
        let mut table = Table::new(&[("name", false), ("bytes", true)]);
        table.row(["<a>", "12"]);
        table.marked(["sum", "12"]);
        let text = table.render().into_string();
        assert!(text.contains("<td>&lt;a&gt;</td><td class=\"number\">12</td>"), "{text}");
        assert_eq!(text.matches("<tr class=\"marked\">").count(), 1);
    }

    #[test]
    fn every_outcome_is_a_word_not_only_a_colour() {
        for (outcome, word) in [(Outcome::of(true), "PASS"), (Outcome::of(false), "FAIL")] {
            assert!(card(outcome, "t", "v", "d").into_string().contains(word));
        }
        assert!(badge(Outcome::Unknown).into_string().contains("NOT MEASURED"));
    }
}
