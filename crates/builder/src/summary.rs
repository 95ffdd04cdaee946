//! From finished tensors to the report.

use std::collections::BTreeMap;

use format::MatrixId;
use inspect::settings_text;
use program::progress::duration;
use program::table::{Align, Table, bits_per_weight, bytes, percent, saved};

use crate::build::{Build, Finished};
use crate::report::{
    ActivationErrors, BuildReport, Errors, FunctionalReport, TensorReport, Totals, total_metrics,
};
use crate::{ErrorMetrics, FfnTuningReport, PlanItem, TuningReport};

/// What tuning brought, in a sentence.
fn tuning_text(t: TuningReport) -> String {
    let (before, after) = (t.divergence_before, t.divergence_after);
    let outcome =
        if after < before { "" } else { "; that is no gain, the codes stay as they were" };
    format!(
        "\n\nTuned in {} steps: divergence from the source model on held-out text {before:.4} before, {after:.4} \
         after (nats per token){outcome}.",
        t.steps
    )
}

/// What tuning FFN by FFN brought, in a sentence.
fn ffn_tuning_text(t: FfnTuningReport) -> String {
    let left = match t.layers_left {
        0 => String::new(),
        n => format!("; of {n} no step was a gain, their codes stay as they were"),
    };
    format!(
        "\n\nFFNs of {} layers tuned in {} steps each: error of what they give on held-out text, as a share of what is \
         wanted, {:.5} before, {:.5} after{left}.",
        t.layers, t.steps, t.error_before, t.error_after
    )
}

/// Below the table of a calibrated build.
const EXPLANATION: &str = "\n\nfitted, held out: error of the outputs on the calibration's activations, as a ratio of \
    sums; by token: the mean over held-out activations of the error relative to the output; plain: held out, for a \
    code of the weights alone; !: held out more than 1.5 times fitted, use more text or --shrink.";

impl Build<'_> {
    /// Reports of all tensors, in the order of the plan.
    #[must_use]
    pub fn tensor_reports(&self, finished: &BTreeMap<MatrixId, Finished>) -> Vec<TensorReport> {
        let keep_dense = self.options.keep_dense;
        let report = |item| tensor_report(item, &finished[&item.tensor], keep_dense);
        self.plan.items.iter().map(report).collect()
    }

    /// Sums over all tensors.
    #[must_use]
    pub fn totals(&self, finished: &BTreeMap<MatrixId, Finished>) -> Totals {
        let reports = self.tensor_reports(finished);
        let plan = self.plan.totals();
        let bytes = reports.iter().map(|r| r.bytes).sum();
        let coded = self.plan.items.iter().filter_map(|item| {
            let result = &finished[&item.tensor].result;
            Some((result.metrics.as_ref().filter(|_| result.scheme.is_some())?, item.shape.d_out))
        });
        let coded: Vec<(&ErrorMetrics, usize)> = coded.collect();
        let white = total_metrics(coded.iter().map(|(m, rows)| (&m.white, *rows)));
        let weighted =
            total_metrics(coded.iter().filter_map(|(m, rows)| Some((m.weighted.as_ref()?, *rows))));
        let n_coded = reports.iter().filter(|r| r.scheme.is_some()).count();
        Totals {
            n_coded,
            n_dense: reports.len() - n_coded,
            n_weights: plan.n_weights,
            bits_per_weight: bits_per_weight(bytes, plan.n_weights),
            bytes,
            bytes_source: plan.source_bytes,
            bytes_q5_k_m: plan.q5_k_m_bytes,
            saved_of_source: saved(bytes, plan.source_bytes),
            saved_of_q5_k_m: saved(bytes, plan.q5_k_m_bytes),
            errors: Errors::new(white.as_ref(), weighted.as_ref()),
            functional: FunctionalReport::mean(
                coded.iter().filter_map(|(m, _)| m.functional.as_ref()),
            ),
            seconds: reports.iter().map(|r| r.seconds).sum(),
        }
    }
}

fn tensor_report(item: &PlanItem, finished: &Finished, keep_dense: bool) -> TensorReport {
    let result = &finished.result;
    let coded_bytes = if result.scheme.is_some() { item.coded_bytes } else { 0 };
    let dense_bytes = if result.scheme.is_none() || keep_dense { item.source_bytes } else { 0 };
    let n_bytes = coded_bytes + dense_bytes;
    let metrics = result.metrics.as_ref();
    TensorReport {
        name: item.tensor.weight(),
        layer: item.tensor.layer,
        role: item.tensor.role.to_string(),
        d_in: item.matrix.shape.d_in,
        d_out: item.matrix.shape.d_out,
        n_experts: item.matrix.n_experts,
        expert_inputs: result.expert_inputs.clone(),
        source_type: item.source_type.to_string(),
        q5_k_m_type: item.q5_k_m_type.to_string(),
        scheme: result.scheme.clone(),
        settings: item.settings.clone(),
        origin: finished.origin,
        bits_per_weight: bits_per_weight(n_bytes, item.shape.n_weights() as u64),
        bytes: n_bytes,
        bytes_source: item.source_bytes,
        bytes_q5_k_m: item.q5_k_m_bytes,
        gap_recorded: result.gap.is_finite().then_some(f64::from(result.gap)),
        errors: Errors::new(metrics.map(|m| &m.white), metrics.and_then(|m| m.weighted.as_ref())),
        functional: metrics.and_then(|m| m.functional.as_ref()).map(FunctionalReport::from),
        gap_eval: metrics.and_then(|m| m.eval_gap).filter(|g| g.is_finite()),
        seconds: result.seconds,
    }
}

impl BuildReport {
    /// What is shown at the end of a build.
    #[must_use]
    pub fn text(&self) -> String {
        let t = &self.totals;
        let dense = match t.n_dense {
            0 => String::new(),
            n => format!(", {n} left dense (--gap-tol)"),
        };
        let explanation = if Shown::of(self).functional { EXPLANATION } else { "" };
        format!(
            "{}{explanation}{}{}\n\n{} tensors coded{dense}: {} saved of the source's bytes, {} of Q5_K_M's.\n\
             {}: {} bytes, the input has {}; {}.",
            self.table().render_for_stdout(),
            self.ffn_tuning.map_or_else(String::new, ffn_tuning_text),
            self.tuning.map_or_else(String::new, tuning_text),
            t.n_coded,
            percent(t.saved_of_source),
            percent(t.saved_of_q5_k_m),
            self.output.path,
            bytes(self.output.bytes),
            bytes(self.input.bytes),
            duration(self.seconds),
        )
    }

    /// The table that is shown at the end of a build.
    #[must_use]
    pub fn table(&self) -> Table {
        let shown = Shown::of(self);
        let mut columns = vec![("tensor", Align::Left), ("scheme", Align::Left)];
        columns.extend([("parameters", Align::Left), ("gap", Align::Right)]);
        columns.extend([("rel. error", Align::Right), ("cos", Align::Right)]);
        columns.push(("cos 5 %", Align::Right));
        if shown.weighted {
            columns.extend([("gap_w", Align::Right), ("cos_w", Align::Right)]);
        }
        if shown.functional {
            columns.extend([("fitted", Align::Right), ("held out", Align::Right)]);
            columns.extend([("by token", Align::Right), ("shrink", Align::Right)]);
        }
        if shown.plain {
            columns.extend([("plain", Align::Right), ("by token", Align::Right)]);
        }
        columns.extend([("bits/weight", Align::Right), ("bytes", Align::Right)]);
        columns.extend([("of source", Align::Right), ("of Q5_K_M", Align::Right)]);
        columns.push(("seconds", Align::Right));
        let mut table = Table::new(&columns);
        for t in &self.tensors {
            let mut cells = vec![
                t.name.trim_end_matches(".weight").to_owned(),
                t.scheme.clone().unwrap_or_else(|| "dense".to_owned()),
                settings_text(&t.settings),
            ];
            cells.extend(error_cells(&t.errors, t.functional.as_ref(), shown));
            cells.extend(size_cells(t.bits_per_weight, t.bytes, t.bytes_source, t.bytes_q5_k_m));
            cells.push(format!("{:.1}", t.seconds));
            table.row(cells);
        }
        let t = &self.totals;
        let mut cells =
            vec![format!("{} tensors", self.tensors.len()), String::new(), String::new()];
        cells.extend(error_cells(&t.errors, t.functional.as_ref(), shown));
        cells.extend(size_cells(t.bits_per_weight, t.bytes, t.bytes_source, t.bytes_q5_k_m));
        cells.push(format!("{:.1}", t.seconds));
        table.total(cells);
        table
    }
}

/// Which of the columns that are not always there are shown.
#[derive(Clone, Copy)]
struct Shown {
    weighted: bool,
    functional: bool,
    plain: bool,
}

impl Shown {
    fn of(report: &BuildReport) -> Self {
        let functional = || report.tensors.iter().filter_map(|t| t.functional.as_ref());
        Self {
            weighted: report.totals.errors.gap_w.is_some(),
            functional: functional().next().is_some(),
            plain: functional().any(|f| f.plain.is_some()),
        }
    }
}

fn error_cells(e: &Errors, f: Option<&FunctionalReport>, shown: Shown) -> Vec<String> {
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let mut cells = vec![cell(e.gap), cell(e.rel_error), cell(e.cos_mean), cell(e.cos_p05)];
    if shown.weighted {
        cells.extend([cell(e.gap_w), cell(e.cos_mean_w)]);
    }
    // Errors on activations are often far below those of the weights.
    let small = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.5}"));
    if shown.functional {
        let of =
            |field: fn(&ActivationErrors) -> Option<f64>| small(f.and_then(|f| field(&f.coded)));
        let flag = if f.is_some_and(|f| f.overfitted) { " !" } else { "" };
        cells.extend([of(|e| e.error_fitted), of(|e| e.error_held_out) + flag]);
        let shrink = f.and_then(|f| f.shrink).map_or_else(|| "-".to_owned(), |s| s.to_string());
        cells.extend([of(|e| e.error_held_out_tokens), shrink]);
    }
    if shown.plain {
        let plain = f.and_then(|f| f.plain);
        cells.push(small(plain.and_then(|p| p.error_held_out)));
        cells.push(small(plain.and_then(|p| p.error_held_out_tokens)));
    }
    cells
}

fn size_cells(bits: f64, n: u64, source: u64, q5_k_m: u64) -> Vec<String> {
    let of = |reference: u64| percent(n as f64 / reference as f64);
    vec![format!("{bits:.2}"), bytes(n), of(source), of(q5_k_m)]
}
