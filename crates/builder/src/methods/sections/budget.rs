//! A number of bytes for all tensors together, and how it is shared out among them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use format::{CodecError, MatrixId};
use numerics::functional::token_error;
use numerics::metrics::ratio;
use sections::{
    Choice, Metric, Probe, SHARED_SECTIONS, SectionsParams, allocate, errors_by_sections,
};

use crate::{Allocation, Encoding, Error, Plan, Survey, by_tensor};

/// Bytes that the sidecars of all tensors may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// `--bpw`: bits per weight, everything included.
    BitsPerWeight(f64),
    /// `--target-saving`: this share less than Q5_K_M's types take for the same tensors.
    Saving(f64),
}

/// The metric of a matrix's inputs; `None` where nothing but their importance is known.
type MetricOf<'a> = dyn Fn(&Encoding<'_>) -> Result<Option<Arc<Metric>>, CodecError> + 'a;

/// Factors of the errors of single tensors (`--sensitivity`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    factors: BTreeMap<MatrixId, f64>,
    /// SHA-256 of the file; `None` if there is none.
    pub sha256: Option<String>,
}

impl Budget {
    /// The flag and its value.
    pub fn argument(self) -> (&'static str, f64) {
        match self {
            Self::BitsPerWeight(bits) => ("--bpw", bits),
            Self::Saving(share) => ("--target-saving", share),
        }
    }

    /// Bytes for the tensors of `plan`.
    fn n_bytes(self, plan: &Plan) -> u64 {
        let totals = plan.totals();
        match self {
            Self::BitsPerWeight(bits) => (bits * totals.n_weights as f64 / 8.0) as u64,
            Self::Saving(share) => ((1.0 - share) * totals.q5_k_m_bytes as f64) as u64,
        }
    }

    fn too_small(self, plan: &Plan, smallest: u64) -> Error {
        let totals = plan.totals();
        let (flag, value) = self.argument();
        let limit = match self {
            Self::BitsPerWeight(_) => {
                let bits = program::table::bits_per_weight(smallest, totals.n_weights);
                format!("use at least {:.3}", (bits * 1000.0).ceil() / 1000.0)
            }
            Self::Saving(_) => {
                let saved = program::table::saved(smallest, totals.q5_k_m_bytes);
                format!("use at most {:.3}", (saved * 1000.0).floor() / 1000.0)
            }
        };
        let reason = format!(
            "{value} is out of reach: with S = {}, the least that is shared out, these tensors take {smallest} \
             bytes: {limit}, or less --outliers",
            SHARED_SECTIONS.start()
        );
        Error::flag(flag, reason)
    }

    /// Sections for every tensor: of all that fit, those with the smallest sum of the tensors' errors times
    /// their sensitivity. The errors are those by token on held-out activations, without a calibration those
    /// of the weights.
    ///
    /// # Errors
    /// [`Error::Program`] if the budget is too small, or as [`Survey::each`].
    pub fn share_out(
        self,
        survey: &Survey<'_>,
        params: &SectionsParams,
        metric: &MetricOf<'_>,
        sensitivity: &Sensitivity,
    ) -> Result<Allocation, Error> {
        let tolerance = survey.options.gap_tol.map(f64::from);
        let choices = survey.each(|encoding| {
            let errors = estimate(encoding, params, metric)?;
            let weight = sensitivity.of(encoding.item.tensor);
            choices(encoding, params, weight, &errors, tolerance)
        })?;
        let smallest = choices.iter().map(|c| c.first().map_or(0, |c| c.n_bytes)).sum();
        let allocated = allocate(&choices, self.n_bytes(survey.plan))
            .ok_or_else(|| self.too_small(survey.plan, smallest))?;
        if sensitivity.sha256.is_none() {
            survey.reporter.line(
                "note: without --sensitivity every tensor's error counts alike, and text can come out worse than \
                 with the same --S for all; --measure-sensitivity measures what they count",
            );
        }
        let tensors = survey.plan.items.iter().map(|item| item.tensor);
        Ok(Allocation(tensors.zip(allocated.iter().map(|c| c.sections as u64)).collect()))
    }
}

/// Errors of a tensor with every number of sections: mean over held-out activations of the error relative to
/// the output, and the ratio of sums that the gap is made of.
fn estimate(
    encoding: &Encoding<'_>,
    params: &SectionsParams,
    metric: &MetricOf<'_>,
) -> Result<Vec<(usize, f64, f64)>, CodecError> {
    let Encoding { item, weights, calibrated, context, .. } = encoding;
    let inputs = calibrated.map(calibration::CalibratedInput::holdout_samples);
    let mut gaps = Vec::new();
    let score = |probe: &Probe, left: &[f32]| {
        let (by_token, sums) = match &inputs {
            Some(x) => {
                let e = token_error(left, probe.rows(), probe.shape(), x, context.mul_mat);
                (e.mean, e.ratio_of_sums)
            }
            None => {
                let energy = |m: &[f32]| m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                let e = ratio(energy(left), energy(probe.rows()));
                (e, e)
            }
        };
        gaps.push(sums);
        by_token
    };
    let data = (*weights, item.shape);
    let errors = errors_by_sections(params, data, metric(encoding)?, context, score)?;
    // Not every number of sections was tried; the gap's ratio to the other error hardly depends on it.
    let scale = gaps.last().zip(errors.last()).map_or(1.0, |(gap, (_, e))| ratio(*gap, *e));
    Ok(errors.into_iter().map(|(sections, e)| (sections, e, e * scale)).collect())
}

/// What there is to choose for one tensor. Sizes whose gap is above `tolerance` are no choice, unless all are:
/// then the largest is left, and the finished code decides whether the tensor stays dense.
fn choices(
    encoding: &Encoding<'_>,
    params: &SectionsParams,
    weight: f64,
    errors: &[(usize, f64, f64)],
    tolerance: Option<f64>,
) -> Result<Vec<Choice>, CodecError> {
    let mut all = Vec::new();
    for &(sections, error, squared_gap) in errors {
        let fits = tolerance.is_none_or(|t| squared_gap.sqrt() <= t);
        if fits || sections == *SHARED_SECTIONS.end() {
            let params = SectionsParams { sections, ..params.clone() };
            let sidecars = params.sidecars(encoding.item.shape)?;
            let n_bytes = format::n_bytes(&sidecars).unwrap_or(usize::MAX) as u64;
            let cost = if error.is_finite() { weight * error } else { 0.0 };
            all.push(Choice { sections, n_bytes, cost });
        }
    }
    Ok(all)
}

impl Sensitivity {
    /// Reads `path`: a JSON object with a factor, not negative, per tensor: `{"blk.0.ffn_down": 2.5}`.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let refuse =
            |reason: String| Error::flag("--sensitivity", format!("{}: {reason}", path.display()));
        let text = std::fs::read(path).map_err(program::io(path, "read"))?;
        let factors = by_tensor::sensitivities(&text).map_err(refuse)?;
        let sha256 = program::files::sha256(&mut text.as_slice(), |_| Ok(()));
        Ok(Self { factors, sha256: sha256.ok() })
    }

    fn of(&self, tensor: MatrixId) -> f64 {
        self.factors.get(&tensor).copied().unwrap_or(1.0)
    }
}
