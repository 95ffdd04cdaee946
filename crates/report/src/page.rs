//! The skeleton of a page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::plot::Palette;

const STYLE: &str = include_str!("style.css");

/// A page: a title, a line below it, and sections in the order in which they were added.
#[derive(Debug)]
pub struct Page {
    title: String,
    subtitle: Markup,
    sections: Vec<(String, String, Markup)>,
}

impl Page {
    /// A page without sections.
    #[must_use]
    pub fn new(title: &str, subtitle: Markup) -> Self {
        Self { title: title.to_owned(), subtitle, sections: Vec::new() }
    }

    /// Appends a section. `id` is its anchor: lower-case letters, digits and `-`.
    pub fn section(&mut self, id: &str, title: &str, body: Markup) {
        self.sections.push((id.to_owned(), title.to_owned(), body));
    }

    /// The HTML file.
    #[must_use]
    pub fn render(&self) -> String {
        let style = format!("{STYLE}\n{}", Palette::dark_style());
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    // No request for an icon: the page is complete.
                    link rel="icon" href="data:,";
                    style { (PreEscaped(style)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        (self.subtitle)
                        nav {
                            @for (id, title, _) in &self.sections { a href={ "#" (id) } { (title) } }
                        }
                    }
                    main {
                        @for (id, title, body) in &self.sections {
                            section id=(id) { h2 { (title) } (body) }
                        }
                    }
                }
            }
        };
        page.into_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_escaped_and_nothing_is_loaded() {
        let mut page = Page::new("<script>alert(1)</script>", html! { p { "a & b" } });
        page.section("one", "First <b>", html! { p { "<img src=x>" } });
        let text = page.render();
        assert!(!text.contains("<script") && !text.contains("<img") && !text.contains("<b>"));
        assert!(text.contains("a &amp; b") && text.contains("id=\"one\"") && text.contains("href=\"#one\""));
        assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("@import"));
    }
}
