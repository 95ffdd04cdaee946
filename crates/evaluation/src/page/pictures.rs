//! Pictures of an evaluation.

use format::Role;
use report::plot::{Axis, Bar, Bars, Chart, Part, Series, Texture};

use super::speed_of;
use crate::file_report::{FileKind, FileReport};
use crate::report::EvaluationReport;

/// Perplexities further apart than this are shown on a logarithmic scale.
const FAR_APART: f64 = 3.0;

/// Kinds of files that pictures tell apart: name, kind, and whether more than the FFN was requantized.
pub(super) const KINDS: [(&str, FileKind, bool); 4] = [
    ("base", FileKind::Base, false),
    ("StateCells", FileKind::Statecells, false),
    ("FFN requantized", FileKind::Requantized, false),
    ("whole file requantized", FileKind::Requantized, true),
];

pub(super) fn megabytes(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.2} GB", bytes / 1e9) } else { format!("{:.0} MB", bytes / 1e6) }
}

/// FFN bytes and perplexity of every file that has both.
fn points(report: &EvaluationReport) -> Vec<(f64, f64, &FileReport)> {
    let point = |file| {
        let file: &FileReport = file;
        Some((file.sizes()?.ffn_bytes as f64, file.ppl()?.value, file))
    };
    report.files.iter().filter_map(point).collect()
}

/// Those that no other beats in both, by bytes.
fn front(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let beaten = |a: &(f64, f64)| points.iter().any(|b| b != a && b.0 <= a.0 && b.1 <= a.1);
    let mut front: Vec<(f64, f64)> = points.iter().copied().filter(|p| !beaten(p)).collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    front.dedup();
    front
}

pub(super) fn perplexity_by_bytes(report: &EvaluationReport) -> Option<Chart> {
    let points = points(report);
    if points.is_empty() {
        return None;
    }
    let (low, high) =
        points.iter().fold((f64::INFINITY, 0.0f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let y = Axis::new("perplexity");
    let y = if high > FAR_APART * low { y.logarithmic() } else { y };
    let mut chart = Chart::new(Axis::new("bytes of the FFN").format(megabytes), y);
    for (name, kind, whole) in KINDS {
        let of = points.iter().filter(|(_, _, f)| (f.kind, f.is_whole()) == (kind, whole));
        let of = of.map(|(x, y, f)| ((*x, *y), f.label.clone()));
        chart = chart.with(Series::points(name, of.collect()));
    }
    let all: Vec<(f64, f64)> = points.iter().map(|(x, y, _)| (*x, *y)).collect();
    Some(chart.with(Series::bare_line("Pareto front", front(&all))))
}

pub(super) fn by_chunk(report: &EvaluationReport) -> Option<Chart> {
    let mut chart =
        Chart::new(Axis::new("chunk").whole(), Axis::new("perplexity over the base's, %"));
    let mut any = false;
    let shown = report.files.iter().filter(|f| f.key == "statecells" || f.key == "ffn-Q5_K_M");
    for file in shown {
        let Some(ratios) = file.chunk_ln_ratio() else { continue };
        let points = ratios.iter().enumerate().map(|(i, r)| ((i + 1) as f64, 100.0 * r.exp_m1()));
        chart = chart.with(Series::line(&file.label, points.collect()));
        any = true;
    }
    any.then_some(chart)
}

/// One line per role over the layers.
fn by_layer(
    report: &EvaluationReport,
    y: Axis,
    of: impl Fn(&inspect::FfnReport) -> Option<f64>,
) -> Option<Chart> {
    let mut chart = Chart::new(Axis::new("layer").whole(), y);
    let mut any = false;
    for role in Role::ALL {
        let name = role.to_string();
        let tensors = report.tensors.iter().filter(|t| t.role == name);
        let points: Vec<(f64, f64)> =
            tensors.filter_map(|t| Some((t.layer as f64, of(t)?))).collect();
        if !points.is_empty() {
            chart = chart.with(Series::line(&name, points));
            any = true;
        }
    }
    any.then_some(chart)
}

pub(super) fn gaps(report: &EvaluationReport) -> Option<Chart> {
    by_layer(report, Axis::new("gap").from(0.0), |t| t.scheme.as_ref().and(t.gap).map(f64::from))
}

pub(super) fn bits(report: &EvaluationReport) -> Option<Chart> {
    by_layer(report, Axis::new("bits per weight").from(0.0), |t| t.bits_per_weight)
}

pub(super) fn speed_ratios(report: &EvaluationReport) -> Option<Bars> {
    let reference = report.file("ffn-Q5_K_M")?;
    speed_of(reference)?;
    let group = |pick: fn((f64, f64)) -> f64| -> Vec<Bar> {
        let bar = |(i, file): (usize, &FileReport)| {
            let ratio = pick(file.speed_ratio(reference)?);
            Some(Bar {
                label: file.label.clone(),
                values: vec![ratio],
                text: format!("{ratio:.2}x"),
                series: i,
            })
        };
        report.files.iter().enumerate().filter_map(bar).collect()
    };
    let bars =
        Bars::new("speed over the base with Q5_K_M's FFN", vec![Part::new("", Texture::Full)]);
    Some(
        bars.group("generation", group(|r| r.1))
            .group("prompt", group(|r| r.0))
            .mark(1.1, "required: 1.10x"),
    )
}

pub(super) fn memory_by_context(report: &EvaluationReport) -> Option<Bars> {
    let parts = vec![
        Part::new("FFN weights", Texture::Full),
        Part::new("other weights", Texture::Lines),
        Part::new("KV cache", Texture::Hollow),
    ];
    let s = &report.settings;
    let title = format!("weights and KV cache (K {}, V {})", s.cache_type_k, s.cache_type_v);
    let shown: Vec<(usize, &FileReport)> = report
        .files
        .iter()
        .enumerate()
        .filter(|(_, f)| matches!(f.key.as_str(), "base" | "statecells" | "ffn-Q5_K_M"))
        .collect();
    let contexts = shown.iter().find_map(|(_, f)| f.sizes())?.kv.clone();
    let mut bars = Bars::new(&title, parts);
    for point in &contexts {
        let bar = |(i, file): &(usize, &FileReport)| {
            let sizes = file.sizes()?;
            let kv = sizes.kv.iter().find(|p| p.n_ctx == point.n_ctx)?.bytes as f64;
            let (ffn, all) = (sizes.ffn_bytes as f64, sizes.tensor_bytes as f64);
            Some(Bar {
                label: file.label.clone(),
                values: vec![ffn, all - ffn, kv],
                text: megabytes(all + kv),
                series: *i,
            })
        };
        bars =
            bars.group(&format!("{} tokens", point.n_ctx), shown.iter().filter_map(bar).collect());
    }
    (!contexts.is_empty()).then_some(bars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (3.0, 1.5)];
        assert_eq!(front(&points), [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]);
        assert!(front(&[]).is_empty());
    }
}
