//! Several evaluations as one page, and its pictures by themselves.

use maud::{Markup, html};
use program::table::{Align, Table as Plain, bytes};
use report::Page;
use report::elements::{Table, figure, note};
use report::plot::{Axis, Chart, Series, svg_file};

use super::pictures::{KINDS, megabytes};
use crate::comparison::{Comparison, Entry};
use crate::file_report::FileKind;
use crate::summary::estimate;

/// Width of a picture that stands alone, in pixels.
const WIDTH: u32 = 860;

/// Columns of the table, and whether they are aligned to the right.
const COLUMNS: [(&str, bool); 5] = [
    ("file", false),
    ("FFN bytes", true),
    ("bits per weight", true),
    ("perplexity", true),
    ("KL divergence", true),
];

/// The page, complete in itself.
#[must_use]
pub fn render(comparison: &Comparison) -> String {
    let (chunks, n_ctx) = comparison.chunks;
    let head = html! {
        p { "Forms of " code { (comparison.base) } }
        p class="soft" { (chunks) " chunks of " (n_ctx) " tokens" }
    };
    let mut page = Page::new("StateCells comparison", head);
    page.section("sizes", "What every size costs", body(comparison));
    page.render()
}

/// Names and contents of the pictures as files.
#[must_use]
pub fn pictures(comparison: &Comparison) -> Vec<(&'static str, String)> {
    let drawn =
        [("perplexity.svg", perplexity(comparison)), ("divergence.svg", divergence(comparison))];
    drawn.into_iter().map(|(name, chart)| (name, svg_file(&chart, WIDTH))).collect()
}

/// The table for a terminal, and what undercuts what.
#[must_use]
pub fn summary(comparison: &Comparison, coloured: bool) -> String {
    let align = |right| if right { Align::Right } else { Align::Left };
    let columns = COLUMNS.map(|(name, right)| (name, align(right)));
    let mut table = Plain::new(&columns);
    comparison.entries.iter().for_each(|e| table.row(cells(e).to_vec()));
    let mut parts = vec![table.render(coloured)];
    parts.extend(undercut(comparison));
    parts.join("\n\n")
}

fn cells(entry: &Entry) -> [String; 5] {
    let divergence = entry.divergence.map(|d| estimate(d, 4));
    [
        entry.label.clone(),
        bytes(entry.ffn_bytes),
        format!("{:.2}", entry.bits_per_weight),
        estimate(entry.perplexity, 2),
        divergence.unwrap_or_else(|| "-".to_owned()),
    ]
}

/// In a sentence; `None` if nothing is undercut.
fn undercut(comparison: &Comparison) -> Option<String> {
    let found = comparison.undercut();
    let pairs: Vec<String> =
        found.iter().map(|(t, c)| format!("{} (by {})", t.label, c.label)).collect();
    let text = format!("Closer to the base than these larger types: {}.", pairs.join(", "));
    (!pairs.is_empty()).then_some(text)
}

fn body(comparison: &Comparison) -> Markup {
    let mut table = Table::new(&COLUMNS);
    for entry in &comparison.entries {
        let cells = cells(entry);
        if entry.kind == FileKind::Statecells { table.marked(cells) } else { table.row(cells) }
    }
    html! {
        (figure(&divergence(comparison), "divergence by FFN bytes", "Mean Kullback-Leibler divergence from the base over bytes of the FFN: lower is closer."))
        (figure(&perplexity(comparison), "perplexity by FFN bytes", "Perplexity over bytes of the FFN matrices."))
        (table.render())
        @if let Some(text) = undercut(comparison) { (note(&text)) }
    }
}

fn perplexity(comparison: &Comparison) -> Chart {
    chart(comparison, Axis::new("perplexity"), |e| Some(e.perplexity.value))
}

/// Logarithmic: divergences of useful files differ by a factor of a hundred.
fn divergence(comparison: &Comparison) -> Chart {
    let y = Axis::new("KL divergence from the base, nats per token").logarithmic();
    chart(comparison, y, |e| e.divergence.map(|d| d.value).filter(|v| *v > 0.0))
}

fn chart(comparison: &Comparison, y: Axis, of: impl Fn(&Entry) -> Option<f64>) -> Chart {
    let mut chart = Chart::new(Axis::new("bytes of the FFN").format(megabytes), y);
    for (name, kind, whole) in KINDS {
        let entries = comparison.entries.iter().filter(|e| (e.kind, e.whole) == (kind, whole));
        let points: Vec<((f64, f64), String)> =
            entries.filter_map(|e| Some(((e.ffn_bytes as f64, of(e)?), e.label.clone()))).collect();
        if !points.is_empty() {
            chart = chart.with(Series::points(name, points));
        }
    }
    chart
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Estimate;

    fn comparison() -> Comparison {
        let entry = |label: &str, kind, ffn_bytes, kl| Entry {
            label: label.to_owned(),
            kind,
            whole: false,
            ffn_bytes,
            bits_per_weight: 3.0,
            perplexity: Estimate { value: 20.0 + kl, error: Some(0.5) },
            divergence: (kl > 0.0).then_some(Estimate { value: kl, error: None }),
        };
        let entries = vec![
            entry("coded <7>", FileKind::Statecells, 10_000_000, 0.05),
            entry("Q4_0 FFN", FileKind::Requantized, 20_000_000, 0.1),
            entry("base", FileKind::Base, 30_000_000, 0.0),
        ];
        Comparison { base: "m.gguf".to_owned(), chunks: (4, 512), entries }
    }

    #[test]
    fn page_and_pictures_name_all_files_and_escape_them() {
        let page = render(&comparison());
        assert!(
            page.contains("coded &lt;7&gt;") && page.contains("Q4_0 FFN") && !page.contains("<7>")
        );
        let pictures = pictures(&comparison());
        assert_eq!(
            pictures.iter().map(|p| p.0).collect::<Vec<_>>(),
            ["perplexity.svg", "divergence.svg"]
        );
        assert!(
            pictures
                .iter()
                .all(|(_, svg)| svg.contains("coded &lt;7&gt;") && svg.contains("Q4_0 FFN"))
        );
        // Nothing without a figure: the base has no divergence, and no whole file was measured.
        assert!(pictures[0].1.contains("\nbase\n") && !pictures[1].1.contains("\nbase\n"));
        assert!(!pictures[0].1.contains("whole file"));
        assert!(pictures.iter().all(|(_, svg)| svg.contains("fill=\"white\"/>")));
    }

    #[test]
    fn the_summary_lines_up_and_says_what_is_undercut() {
        let text = summary(&comparison(), false);
        assert!(text.contains("10 000 000"), "{text}");
        assert!(text.ends_with("larger types: Q4_0 FFN (by coded <7>)."), "{text}");
    }
}
