//! A report as a few lines for a terminal.

use program::table::{Align, Table, bytes};

use crate::file_report::FileReport;
use crate::measured::value;
use crate::report::EvaluationReport;
use crate::stats::{Estimate, median};
use crate::verdict::{Level, Verdict};

/// Table of files, then rules and verdict.
#[must_use]
pub fn summary(report: &EvaluationReport, coloured: bool) -> String {
    let mut parts = vec![files(report).render(coloured), rules(&report.verdict).render(coloured)];
    if let Some(qa) = value(&report.qa) {
        parts.push(format!(
            "Prompts: base {} of {}, StateCells {}.",
            qa.n_base, qa.n_asked, qa.n_statecells
        ));
    }
    parts.extend(report.warnings.iter().map(|w| format!("warning: {w}")));
    parts.push(verdict(&report.verdict).to_owned());
    parts.join("\n\n")
}

/// The verdict in one line.
#[must_use]
pub fn verdict(verdict: &Verdict) -> &'static str {
    match verdict.passed {
        Some(true) => "PASS: all required rules",
        Some(false) => "FAIL: a required rule failed",
        None => "NOT DECIDED: a required rule was not measured",
    }
}

/// `22.91 +- 0.76`.
pub(crate) fn estimate(e: Estimate, digits: usize) -> String {
    match e.error {
        Some(error) => format!("{:.digits$} \u{b1} {error:.digits$}", e.value),
        None => format!("{:.digits$}", e.value),
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn files(report: &EvaluationReport) -> Table {
    let mut table = Table::new(&[
        ("file", Align::Left),
        ("FFN bytes", Align::Right),
        ("bits/weight", Align::Right),
        ("perplexity", Align::Right),
        ("over base", Align::Right),
        ("KL divergence", Align::Right),
        ("same top", Align::Right),
        ("prompt tok/s", Align::Right),
        ("generation tok/s", Align::Right),
    ]);
    for file in &report.files {
        table.row(row(file, &report.files[0]));
    }
    table
}

fn row(file: &FileReport, base: &FileReport) -> Vec<String> {
    let divergence = value(&file.divergence);
    let speed = value(&file.speed);
    let gap = file.ppl_gap(base).filter(|_| file.key != base.key);
    vec![
        file.label.clone(),
        or_dash(file.sizes().map(|s| bytes(s.ffn_bytes))),
        or_dash(file.sizes().map(|s| format!("{:.2}", s.ffn_bits_per_weight))),
        or_dash(file.ppl().map(|p| estimate(p, 2))),
        or_dash(gap.map(|g| format!("{:+.2} %", 100.0 * g.value))),
        or_dash(divergence.map(|d| format!("{:.4}", d.kl_mean.value))),
        or_dash(divergence.map(|d| format!("{:.1} %", 100.0 * d.same_top.value))),
        or_dash(speed.and_then(|s| median(&s.prompt)).map(|s| format!("{s:.1}"))),
        or_dash(speed.and_then(|s| median(&s.generation)).map(|s| format!("{s:.1}"))),
    ]
}

fn rules(verdict: &Verdict) -> Table {
    let mut table = Table::new(&[
        ("rule", Align::Left),
        ("", Align::Left),
        ("found", Align::Right),
        ("", Align::Left),
    ]);
    for rule in &verdict.rules {
        let level = if rule.level == Level::Required { "required" } else { "aim" };
        let outcome = report::elements::Outcome::from_option(rule.passed).text();
        table.row(vec![rule.title.clone(), level.to_owned(), rule.figure(), outcome.to_owned()]);
    }
    table
}
