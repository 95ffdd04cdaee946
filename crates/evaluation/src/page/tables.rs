//! Tables of an evaluation.

use maud::{Markup, html};
use program::table::bytes;
use report::elements::{Outcome, Table, badge, warning};

use super::speed_of;
use crate::file_report::FileReport;
use crate::measured::{Measured, value};
use crate::qa::QaReport;
use crate::report::EvaluationReport;
use crate::stats::median;
use crate::summary::estimate;

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}

/// Sizes and quality of all files; failures below.
pub(super) fn files(report: &EvaluationReport) -> Markup {
    let mut table = Table::new(&[
        ("file", false),
        ("FFN bytes", true),
        ("bits per weight", true),
        ("against Q5_K_M", true),
        ("perplexity", true),
        ("over base", true),
        ("over Q5_K_M FFN", true),
        ("KL divergence", true),
        ("same top token", true),
    ]);
    let reference = report.file("ffn-Q5_K_M");
    let base = report.file("base");
    for file in &report.files {
        let against = |other: Option<&FileReport>| {
            let other = other.filter(|o| o.key != file.key)?;
            Some(file.ppl_gap(other).map(|g| {
                estimate(
                    crate::stats::Estimate {
                        value: 100.0 * g.value,
                        error: g.error.map(|e| 100.0 * e),
                    },
                    2,
                ) + " %"
            }))?
        };
        let saved =
            || Some(file.sizes()?.ffn_bytes as f64 / reference?.sizes()?.ffn_bytes as f64 - 1.0);
        let divergence = value(&file.divergence);
        let cells = [
            file.label.clone(),
            or_dash(file.sizes().map(|s| bytes(s.ffn_bytes))),
            or_dash(file.sizes().map(|s| format!("{:.2}", s.ffn_bits_per_weight))),
            or_dash(saved().map(percent)),
            or_dash(file.ppl().map(|p| estimate(p, 3))),
            or_dash(against(base)),
            or_dash(against(reference)),
            or_dash(divergence.map(|d| estimate(d.kl_mean, 4))),
            or_dash(divergence.map(|d| format!("{:.1} %", 100.0 * d.same_top.value))),
        ];
        if file.key == "statecells" { table.marked(cells) } else { table.row(cells) }
    }
    html! {
        (table.render())
        (notes(report))
        (failures(report, |f| f.sizes.failure.as_deref()))
        (failures(report, |f| f.perplexity.as_ref().and_then(|m| m.failure.as_deref())))
        (failures(report, |f| f.divergence.as_ref().and_then(|m| m.failure.as_deref())))
    }
}

fn notes(report: &EvaluationReport) -> Markup {
    let noted: Vec<&FileReport> = report.files.iter().filter(|f| !f.notes.is_empty()).collect();
    html! {
        @if !noted.is_empty() {
            details {
                summary { "Types that fell back on others" }
                ul { @for file in noted { @for note in &file.notes { li { (file.label) ": " (note) } } } }
            }
        }
    }
}

/// What failed, file by file.
pub(super) fn failures(
    report: &EvaluationReport,
    of: impl Fn(&FileReport) -> Option<&str>,
) -> Markup {
    html! {
        @for file in &report.files {
            @if let Some(failure) = of(file) { (warning(&format!("{}: failed: {failure}", file.label))) }
        }
    }
}

pub(super) fn speeds(report: &EvaluationReport) -> Markup {
    let mut table = Table::new(&[
        ("file", false),
        ("generation", true),
        ("prompt", true),
        ("generation, tokens/s", true),
        ("prompt, tokens/s", true),
    ]);
    let Some(reference) = report.file("ffn-Q5_K_M") else { return table.render() };
    for file in &report.files {
        let Some(speed) = speed_of(file) else { continue };
        let ratio = file.speed_ratio(reference);
        let times = |r: Option<f64>| or_dash(r.map(|r| format!("{r:.2}x")));
        let middle = |v: &[f64]| or_dash(median(v).map(|m| format!("{m:.1}")));
        let cells = [
            file.label.clone(),
            times(ratio.map(|r| r.1)),
            times(ratio.map(|r| r.0)),
            middle(&speed.generation),
            middle(&speed.prompt),
        ];
        if file.key == "statecells" { table.marked(cells) } else { table.row(cells) }
    }
    table.render()
}

pub(super) fn memory(report: &EvaluationReport) -> Markup {
    let mut table = Table::new(&[
        ("file", false),
        ("FFN bytes", true),
        ("all weights", true),
        ("file", true),
        ("peak resident while running", true),
        ("FFN types", false),
    ]);
    for file in &report.files {
        let sizes = file.sizes();
        let types = sizes.map(|s| {
            s.ffn_types.iter().map(|(t, n)| format!("{t} x {n}")).collect::<Vec<_>>().join(", ")
        });
        let cells = [
            file.label.clone(),
            or_dash(sizes.map(|s| bytes(s.ffn_bytes))),
            or_dash(sizes.map(|s| bytes(s.tensor_bytes))),
            or_dash(sizes.map(|s| bytes(s.file_bytes))),
            or_dash(speed_of(file).map(|s| bytes(s.peak_memory_bytes))),
            or_dash(types),
        ];
        if file.key == "statecells" { table.marked(cells) } else { table.row(cells) }
    }
    table.render()
}

pub(super) fn tensors(report: &EvaluationReport) -> Markup {
    let mut table = Table::new(&[
        ("tensor", false),
        ("scheme", false),
        ("shape", true),
        ("bits per weight", true),
        ("gap", true),
        ("bytes", true),
        ("as Q5_K_M", true),
    ]);
    for t in &report.tensors {
        let kind = t.scheme.clone().or_else(|| t.dense_type.clone());
        table.row([
            t.name.clone(),
            or_dash(kind),
            or_dash(t.shape().map(|s| s.to_string())),
            or_dash(t.bits_per_weight.map(|b| format!("{b:.2}"))),
            or_dash(t.gap.filter(|_| t.scheme.is_some()).map(|g| format!("{g:.4}"))),
            bytes(t.bytes),
            bytes(t.bytes_q5_k_m),
        ]);
    }
    table.render()
}

pub(super) fn prompts(qa: &QaReport) -> Markup {
    let mut table = Table::new(&[
        ("prompt", false),
        ("base", false),
        ("StateCells", false),
        ("same tokens", true),
    ]);
    for row in &qa.prompts {
        let same = if row.differs {
            row.same_tokens.to_string()
        } else {
            format!("all {}", row.same_tokens)
        };
        table.markup(vec![
            html! { (row.kind) ": " (row.id) },
            badge(Outcome::of(row.base_passes)),
            badge(Outcome::of(row.statecells_passes)),
            html! { (same) },
        ]);
    }
    table.render()
}

/// Settings, versions and every command.
pub(super) fn measured(report: &EvaluationReport) -> Markup {
    let s = &report.settings;
    let facts = [
        ("program", format!("{} {}, {}", report.tool, report.tool_version, report.llama_cpp)),
        (
            "machine",
            format!(
                "{}, {} cores, {}",
                report.machine.cpu, report.machine.cores, report.machine.system
            ),
        ),
        ("load at start", or_dash(report.machine.load_at_start.map(|l| l.to_string()))),
        ("text", format!("{} (SHA-256 {})", report.text.path, report.text.sha256)),
        ("calibration text", calibration(report)),
        (
            "speed",
            format!(
                "{} rounds, prompt of {} tokens, {} generated",
                s.rounds, s.prompt_tokens, s.generation_tokens
            ),
        ),
        ("KV cache", format!("K {}, V {}", s.cache_type_k, s.cache_type_v)),
    ];
    html! {
        dl { @for (name, text) in &facts { dt class="soft" { (name) } dd { (text) } } }
        details {
            summary { "Commands" }
            pre { (report.command.join(" ")) }
            @for file in &report.files { @for line in commands(file) { pre { (line) } } }
        }
    }
}

fn calibration(report: &EvaluationReport) -> String {
    match &report.overlap {
        Some(o) => format!(
            "{} of {} compared runs of {} tokens are shared ({})",
            o.n_shared, o.n_compared, o.run_tokens, o.source
        ),
        None => "not known, or none: nothing was compared".to_owned(),
    }
}

fn commands(file: &FileReport) -> Vec<String> {
    let line = |command: &[String], log: Option<&String>| {
        let log = log.map(|l| format!("   # {l}")).unwrap_or_default();
        (!command.is_empty()).then(|| command.join(" ") + &log)
    };
    fn of<T>(m: &Option<Measured<T>>) -> Option<(&[String], Option<&String>)> {
        m.as_ref().map(|m| (m.command.as_slice(), m.log.as_ref()))
    }
    let all = [
        Some((file.sizes.command.as_slice(), file.sizes.log.as_ref())),
        of(&file.perplexity),
        of(&file.divergence),
        of(&file.speed),
    ];
    all.into_iter().flatten().filter_map(|(command, log)| line(command, log)).collect()
}
