//! One tensor: read, encode, decode, measure.

use std::borrow::Cow;
use std::time::Instant;

use calibration::CalibratedInput;
use format::{CodecError, Sidecar};
use numerics::metrics::Metrics;
use numerics::{EncodeContext, MatMul, Progress, check_finite};
use program::Reporter;

use crate::random_gap::random_gap;
use crate::work::sidecars_sha256;
use crate::{
    BuildOptions, Encoded, Encoding, Error, ErrorMetrics, FunctionalErrors, FunctionalMetrics,
    Importance, Inputs, Method, PlanItem, Source, StoredSpec, TensorResult,
};

/// Mixed into a tensor's seed for the random inputs, which must not repeat those of the codec.
const EVAL_SEED: u64 = 0x6576_616c_2d63_6f6c;

/// What encoding and measuring any tensor needs.
#[derive(Clone, Copy)]
pub struct TensorEncoder<'a> {
    /// The source model.
    pub source: &'a Source,
    /// The codec's side.
    pub method: &'a dyn Method,
    /// What to do with the result.
    pub options: &'a BuildOptions,
    /// Activations of the tensors' inputs, where text runs through them; `None` without a calibration.
    pub inputs: Option<&'a dyn Inputs>,
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
    /// Where progress goes.
    pub progress: Steps<'a>,
}

/// The steps of a codec as a program's progress.
#[derive(Clone, Copy)]
pub struct Steps<'a>(pub &'a Reporter);

impl Progress for Steps<'_> {
    fn stage(&self, name: &str, steps: u64) {
        self.0.stage(name, steps);
    }

    fn advance(&self, steps: u64) {
        self.0.advance(steps);
    }
}

impl TensorEncoder<'_> {
    /// Learns and encodes a tensor.
    ///
    /// # Errors
    /// [`Error::Codec`], [`Error::Inspect`] or [`Error::Calibration`].
    pub fn encode(
        &self,
        item: &PlanItem,
        importance: Option<&Importance>,
    ) -> Result<(TensorResult, Vec<Sidecar>), Error> {
        self.finish(item, importance, |encoding| self.method.encode(encoding))
    }

    /// Measures sidecars of an earlier run or step, which stay in any case: `gap` is the one that is recorded of them,
    /// `None` for that measured now.
    ///
    /// # Errors
    /// [`Error::Codec`], [`Error::Inspect`] or [`Error::Calibration`].
    pub fn measure(
        &self,
        item: &PlanItem,
        importance: Option<&Importance>,
        sidecars: Vec<Sidecar>,
        gap: Option<f32>,
    ) -> Result<TensorResult, Error> {
        // Whether they stay has been decided by the gap that was measured when they were made.
        let options = BuildOptions { gap_tol: None, ..self.options.clone() };
        let encoder = TensorEncoder { options: &options, ..*self };
        let made = |_: &Encoding<'_>| Ok(Encoded { sidecars, shrink: None });
        let (result, _) = encoder.finish(item, importance, made)?;
        Ok(TensorResult { gap: gap.unwrap_or(result.gap), ..result })
    }

    pub(crate) fn finish(
        &self,
        item: &PlanItem,
        importance: Option<&Importance>,
        make: impl FnOnce(&Encoding<'_>) -> Result<Encoded, CodecError>,
    ) -> Result<(TensorResult, Vec<Sidecar>), Error> {
        let start = Instant::now();
        let codec_error = |cause| Error::Codec { tensor: item.tensor.weight(), cause };
        let inputs = self.inputs.filter(|_| !self.source.is_mtp(item.tensor));
        let weights = match inputs.and_then(|i| i.target(item.tensor)) {
            Some(target) => {
                check_finite(target, item.shape).map_err(codec_error)?;
                Cow::Borrowed(target)
            }
            None => Cow::Owned(self.source.weights(item.tensor)?),
        };
        let calibrated = inputs.map(|i| i.input(item.tensor.input())).transpose()?;
        let calibrated = calibrated.as_deref();
        let context = self.context(item, importance.map(|i| i.shaped.as_slice()));
        let (source, context) = (self.source, &context);
        let encoding =
            Encoding { item, weights: &weights, source, calibrated, importance, context };
        let Encoded { sidecars, shrink } = make(&encoding).map_err(codec_error)?;
        assert!(
            sidecars.iter().map(|s| &s.spec).eq(&item.sidecars),
            "{}: the codec made other tensors than it announced",
            item.tensor
        );
        let approx = item.codec.decode(&sidecars, item.shape).map_err(codec_error)?;
        check_finite(&approx, item.shape).map_err(|e| overflow(item, &e))?;
        let mut metrics = self.errors(item, importance, &weights, approx, calibrated);
        if let (Some(functional), Some(input)) = (&mut metrics.functional, calibrated) {
            functional.shrink = shrink;
            if self.options.eval_plain {
                let plain = self.plain_errors(item, &weights, input).map_err(codec_error)?;
                functional.plain = Some(plain);
            }
        }
        let gap = metrics.gap() as f32;
        let is_dense = self.options.gap_tol.is_some_and(|tolerance| gap > tolerance);
        let sidecars = if is_dense { Vec::new() } else { sidecars };
        let result = TensorResult {
            scheme: (!is_dense).then(|| item.codec.scheme().to_owned()),
            gap,
            metrics: Some(metrics),
            seconds: start.elapsed().as_secs_f64(),
            sidecars: sidecars.iter().map(|s| StoredSpec::from(&s.spec)).collect(),
            sidecars_sha256: sidecars_sha256(sidecars.iter().map(|s| s.data.as_slice())),
            expert_inputs: match calibrated {
                Some(input) => input.experts.n_tokens(),
                None => importance.into_iter().flat_map(Importance::expert_inputs).collect(),
            },
            ffn_tuned: None,
            tuned: None,
        };
        Ok((result, sidecars))
    }

    fn context<'b>(&'b self, item: &PlanItem, importance: Option<&'b [f32]>) -> EncodeContext<'b> {
        let (mul_mat, progress) = (self.mul_mat, &self.progress);
        EncodeContext { mul_mat, importance, seed: item.seed, progress }
    }

    /// Errors of a code that knows the weights only.
    fn plain_errors(
        &self,
        item: &PlanItem,
        weights: &[f32],
        input: &CalibratedInput,
    ) -> Result<FunctionalErrors, CodecError> {
        let sidecars = item.codec.encode(weights, item.shape, &self.context(item, None))?;
        let mut error = item.codec.decode(&sidecars, item.shape)?;
        error.iter_mut().zip(weights).for_each(|(a, w)| *a = w - *a);
        Ok(FunctionalErrors::measure(&error, weights, item.shape, input, self.mul_mat))
    }

    fn errors(
        &self,
        item: &PlanItem,
        importance: Option<&Importance>,
        weights: &[f32],
        mut approx: Vec<f32>,
        calibrated: Option<&CalibratedInput>,
    ) -> ErrorMetrics {
        let measured = importance.map(|i| i.measured.as_slice());
        let compare = |h| Metrics::compare(weights, &approx, item.shape, h);
        let white = compare(None);
        let weighted = measured.map(|h| compare(Some(h)));
        let n_columns = self.options.eval_cols;
        approx.iter_mut().zip(weights).for_each(|(a, w)| *a = w - *a);
        let error = approx;
        let eval_gap = (n_columns > 0).then(|| {
            let seed = item.seed ^ EVAL_SEED;
            random_gap(weights, &error, item.shape, measured, n_columns, seed, self.mul_mat)
        });
        let functional = calibrated.map(|input| {
            let coded = FunctionalErrors::measure(&error, weights, item.shape, input, self.mul_mat);
            FunctionalMetrics { coded, plain: None, shrink: None }
        });
        ErrorMetrics { white, weighted, eval_gap, functional }
    }
}

/// A value left the range of `f32` while atoms were summed.
fn overflow(item: &PlanItem, error: &CodecError) -> Error {
    Error::Codec {
        tensor: item.tensor.weight(),
        cause: CodecError::Sidecar {
            suffix: "dict",
            reason: format!("the decoded matrix is not finite ({error})"),
        },
    }
}
