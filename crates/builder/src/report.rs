//! The report of a build, as JSON (`docs/schema/build-report.schema.json`) and as a table.

use std::collections::BTreeMap;

use inspect::Settings;
use numerics::metrics::{Metrics, ratio};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FfnTuningReport, FunctionalErrors, FunctionalMetrics, TuningReport};

/// Version of [`BuildReport`]; it grows when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// What a build did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BuildReport {
    /// Version of this schema.
    pub schema_version: u32,
    /// Name of the program.
    pub tool: String,
    /// Version of the program.
    pub tool_version: String,
    /// Version of the llama.cpp whose ggml did the arithmetic.
    pub llama_cpp: String,
    /// The source model.
    pub input: FileReport,
    /// The file written.
    pub output: FileReport,
    /// Flags with their effective values; files stand as their SHA-256.
    pub arguments: BTreeMap<String, String>,
    /// Number of threads.
    pub threads: usize,
    /// Whether earlier work was taken over (`--resume`).
    pub resumed: bool,
    /// Seconds from start to end of this run.
    pub seconds: f64,
    /// What `--tune-ffn` brought; `null` without it, and where all tensors were taken from an existing output.
    #[serde(default)]
    pub ffn_tuning: Option<FfnTuningReport>,
    /// What `--tune` brought; `null` without it, and where all tensors were taken from an existing output.
    #[serde(default)]
    pub tuning: Option<TuningReport>,
    /// Every selected tensor, by layer and role.
    pub tensors: Vec<TensorReport>,
    /// Sums and means over `tensors`.
    pub totals: Totals,
}

/// A GGUF file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FileReport {
    /// Path as given.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, hexadecimal; `null` if it was not needed.
    pub sha256: Option<String>,
}

/// How a tensor came to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Coded in this run.
    Built,
    /// Taken from the work folder of an interrupted run.
    Checkpoint,
    /// Taken from the existing output.
    Output,
    /// Taken over and completed in this run (a missing `row_scale`).
    Completed,
}

/// One selected tensor.
///
/// The errors compare the weight W with its approximation W^. For inputs x with E\[x x^T\] = diag(h):
/// gap = sqrt(E|(W - W^) x|^2 / E|W x|^2). Fields without `_w` are for white inputs (h = 1), fields with
/// `_w` for h from the imatrix or the calibration, `functional` for the calibration's activations
/// themselves. A tensor that stays dense lists the errors of the refused approximation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TensorReport {
    /// Name of the dense weight in the source.
    pub name: String,
    /// Layer, from 0.
    pub layer: usize,
    /// `gate`, `up` or `down`.
    #[serde(rename = "target")]
    pub role: String,
    /// Number of inputs, the length of a row.
    pub d_in: usize,
    /// Number of outputs, the number of rows.
    pub d_out: usize,
    /// Number of experts that have such a matrix each; `null` for one matrix.
    #[serde(default)]
    pub n_experts: Option<usize>,
    /// Inputs to fit to that each expert has seen: of 0, its codes are fitted to what all experts have seen; empty where that
    /// is not kept.
    #[serde(default)]
    pub expert_inputs: Vec<u64>,
    /// Type in the source, by ggml's name.
    pub source_type: String,
    /// Type that Q5_K_M gives this tensor, by ggml's name.
    pub q5_k_m_type: String,
    /// Scheme of the sidecars; `null` if the dense weight stays because the gap is above `--gap-tol`.
    pub scheme: Option<String>,
    /// Parameters of the scheme, such as `M` and `k`.
    pub settings: Settings,
    /// Where the result comes from.
    pub origin: Origin,
    /// Bits per weight in the output.
    pub bits_per_weight: f64,
    /// Bytes in the output: sidecars, and the dense weight where it stays.
    pub bytes: u64,
    /// Bytes in the source.
    pub bytes_source: u64,
    /// Bytes that Q5_K_M needs for it.
    pub bytes_q5_k_m: u64,
    /// The gap that is recorded in the file, as F32: the root of the held-out error with a calibration,
    /// `gap_w` with an imatrix, else `gap`; `null` if it is not finite.
    pub gap_recorded: Option<f64>,
    /// Errors, for white inputs and with `_w` for the imatrix or the calibration.
    #[serde(flatten)]
    pub errors: Errors,
    /// Gap measured on `--eval-cols` random inputs; `null` without them.
    pub gap_eval: Option<f64>,
    /// Errors on the activations of the calibration; `null` without one.
    #[serde(default)]
    pub functional: Option<FunctionalReport>,
    /// Seconds of learning, encoding and measuring.
    pub seconds: f64,
}

/// Errors of one tensor or of all; `null` where not measured or not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Errors {
    /// Root of the relative squared error.
    pub gap: Option<f64>,
    /// Relative squared error, gap^2.
    pub rel_error: Option<f64>,
    /// Mean over rows of the cosine between a row and its approximation.
    pub cos_mean: Option<f64>,
    /// 5th percentile over rows of the same cosine; in totals the mean of the tensors' percentiles,
    /// weighted by their rows.
    pub cos_p05: Option<f64>,
    /// `gap` under the imatrix or the diagonal of the calibration.
    pub gap_w: Option<f64>,
    /// `rel_error` under the imatrix or the diagonal of the calibration.
    pub rel_error_w: Option<f64>,
    /// `cos_mean` under the imatrix or the diagonal of the calibration.
    pub cos_mean_w: Option<f64>,
    /// `cos_p05` under the imatrix or the diagonal of the calibration.
    pub cos_p05_w: Option<f64>,
}

/// Relative squared errors of a tensor's outputs on activations; in totals the means over the coded tensors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionalReport {
    /// The code in the file.
    #[serde(flatten)]
    pub coded: ActivationErrors,
    /// A code with the same parameters, fitted to the weights only; `null` without `--eval-plain`.
    pub plain: Option<ActivationErrors>,
    /// How far the second moment was drawn towards inputs that tell nothing of each other, 0 to 1; `null` where no second
    /// moment was used, in totals, and for a tensor taken from an existing output.
    pub shrink: Option<f64>,
    /// Whether `error_held_out` is more than 1.5 times `error_fitted`; in totals, whether any is.
    pub overfitted: bool,
}

/// The same error on three sets of activations; `null` if not finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ActivationErrors {
    /// sum |(W - W^) x|^2 / sum |W x|^2 over the activations that were fitted to.
    pub error_fitted: Option<f64>,
    /// The same over held-out activations.
    pub error_held_out: Option<f64>,
    /// Mean over held-out activations of |(W - W^) x|^2 / |W x|^2.
    pub error_held_out_tokens: Option<f64>,
}

impl From<FunctionalErrors> for ActivationErrors {
    fn from(errors: FunctionalErrors) -> Self {
        let finite = |v: f64| v.is_finite().then_some(v);
        Self {
            error_fitted: finite(errors.fitted),
            error_held_out: finite(errors.held_out),
            error_held_out_tokens: finite(errors.held_out_tokens),
        }
    }
}

impl From<&FunctionalMetrics> for FunctionalReport {
    fn from(metrics: &FunctionalMetrics) -> Self {
        Self {
            coded: metrics.coded.into(),
            plain: metrics.plain.map(ActivationErrors::from),
            shrink: metrics.shrink,
            overfitted: metrics.coded.is_overfitted(),
        }
    }
}

impl FunctionalReport {
    /// The mean over `tensors`; `None` for no tensors.
    #[must_use]
    pub fn mean<'a>(tensors: impl Iterator<Item = &'a FunctionalMetrics>) -> Option<Self> {
        let tensors: Vec<&FunctionalMetrics> = tensors.collect();
        let coded: Vec<FunctionalErrors> = tensors.iter().map(|m| m.coded).collect();
        let plain: Option<Vec<FunctionalErrors>> = tensors.iter().map(|m| m.plain).collect();
        Some(Self {
            coded: mean_errors(&coded)?.into(),
            plain: plain.and_then(|p| mean_errors(&p)).map(ActivationErrors::from),
            shrink: None,
            overfitted: coded.iter().any(FunctionalErrors::is_overfitted),
        })
    }
}

fn mean_errors(all: &[FunctionalErrors]) -> Option<FunctionalErrors> {
    let mean =
        |field: fn(&FunctionalErrors) -> f64| all.iter().map(field).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| FunctionalErrors {
        fitted: mean(|e| e.fitted),
        held_out: mean(|e| e.held_out),
        held_out_tokens: mean(|e| e.held_out_tokens),
    })
}

/// Sums and means over all selected tensors.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Tensors that are coded.
    pub n_coded: usize,
    /// Tensors whose gap was above `--gap-tol`.
    pub n_dense: usize,
    /// Weights of all of them.
    pub n_weights: u64,
    /// Bits per weight in the output.
    pub bits_per_weight: f64,
    /// Bytes in the output.
    pub bytes: u64,
    /// Bytes in the source.
    pub bytes_source: u64,
    /// Bytes as Q5_K_M.
    pub bytes_q5_k_m: u64,
    /// Share of the source's bytes that is saved; negative if the output is larger.
    pub saved_of_source: f64,
    /// Share of Q5_K_M's bytes that is saved; negative if the output is larger.
    pub saved_of_q5_k_m: f64,
    /// Errors over the coded tensors: relative errors are ratios of summed energies, cosines means
    /// over all rows.
    #[serde(flatten)]
    pub errors: Errors,
    /// Errors on the activations of the calibration, means over the coded tensors; `null` without one.
    #[serde(default)]
    pub functional: Option<FunctionalReport>,
    /// Seconds over all tensors, those of earlier runs included.
    pub seconds: f64,
}

impl Errors {
    /// Errors from metrics for white inputs and, with an imatrix, weighted ones.
    #[must_use]
    pub fn new(white: Option<&Metrics>, weighted: Option<&Metrics>) -> Self {
        let of = |m: Option<&Metrics>, field: fn(&Metrics) -> f64| {
            m.map(field).filter(|value| value.is_finite())
        };
        Self {
            gap: of(white, |m| m.gap),
            rel_error: of(white, |m| m.rel_error),
            cos_mean: of(white, |m| m.cos_mean),
            cos_p05: of(white, |m| m.cos_p05),
            gap_w: of(weighted, |m| m.gap),
            rel_error_w: of(weighted, |m| m.rel_error),
            cos_mean_w: of(weighted, |m| m.cos_mean),
            cos_p05_w: of(weighted, |m| m.cos_p05),
        }
    }
}

/// Metrics over several tensors, each given with its number of rows; `None` for no tensors.
#[must_use]
pub fn total_metrics<'a>(tensors: impl Iterator<Item = (&'a Metrics, usize)>) -> Option<Metrics> {
    let (mut rows, mut error_energy, mut weight_energy) = (0.0, 0.0, 0.0);
    let (mut cos_mean, mut cos_p05) = (0.0, 0.0);
    for (m, n_rows) in tensors {
        let n_rows = n_rows as f64;
        rows += n_rows;
        error_energy += m.error_energy;
        weight_energy += m.weight_energy;
        cos_mean += n_rows * m.cos_mean;
        cos_p05 += n_rows * m.cos_p05;
    }
    let rel_error = ratio(error_energy, weight_energy);
    (rows > 0.0).then(|| Metrics {
        gap: rel_error.sqrt(),
        rel_error,
        cos_mean: cos_mean / rows,
        cos_p05: cos_p05 / rows,
        error_energy,
        weight_energy,
    })
}

/// The JSON schema of [`BuildReport`], as committed in `docs/schema/`.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(BuildReport);
    serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n"
}

#[cfg(test)]
mod tests {
    use format::MatrixShape;

    use super::*;

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        program::check_schema("build-report.schema.json", &schema(), "builder");
    }

    #[test]
    fn the_total_over_two_halves_is_the_whole() {
        let w: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
        let a: Vec<f32> = w.iter().map(|v| (v * 4.0).round() / 4.0).collect();
        let half = |r: std::ops::Range<usize>| {
            Metrics::compare(&w[r.clone()], &a[r], MatrixShape::new(4, 3), None)
        };
        let whole = Metrics::compare(&w, &a, MatrixShape::new(4, 6), None);
        let total = total_metrics([(&half(0..12), 3), (&half(12..24), 3)].into_iter()).unwrap();
        assert!((total.gap - whole.gap).abs() < 1e-12);
        assert!((total.cos_mean - whole.cos_mean).abs() < 1e-12);
        assert!(total_metrics(std::iter::empty()).is_none());
    }

    #[test]
    fn an_infinite_gap_is_null() {
        let shape = MatrixShape::new(2, 1);
        let m = Metrics::compare(&[0.0; 2], &[1.0, 0.0], shape, None);
        assert_eq!(Errors::new(Some(&m), None).gap, None);
    }
}
