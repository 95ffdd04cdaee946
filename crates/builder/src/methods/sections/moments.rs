//! Second moments of a calibration's inputs, and how far they are trusted.

use std::sync::Arc;

use calibration::{CalibratedInput, Fitted};
use format::{CodecError, MatrixShape};
use numerics::functional::{functional_error, token_error};
use numerics::{EncodeContext, MatMul, Moment, Shrink};
use sections::{InputKey, InputMetrics, Metric, Probe, SectionsParams};
use sha2::{Digest, Sha256};

/// Inputs of a span where the whole second moment would be too large: 4096^2 entries are 64 MB.
const SPAN: usize = 4096;

/// Values that are hashed at once.
const HASHED_VALUES: usize = 4096;

/// How the second moments of a calibration are used.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Their shrinkage.
    pub shrink: Shrink,
    /// Inputs up to this length get a whole one, longer ones one in spans.
    pub max_dim: usize,
}

impl Moments {
    /// E[x x^T] of `input`: whole up to the longest input that is, in spans beyond.
    pub fn moment(self, input: &CalibratedInput, mul_mat: &dyn MatMul) -> Moment {
        let d = input.d();
        let width = if d > self.max_dim { SPAN.min(self.max_dim) } else { d };
        match &input.fitted {
            Fitted::Moment(known) => Moment::from_fn(d, width, |i, j| known.mean_at(i, j)),
            Fitted::Samples(samples) => {
                let columns = samples.columns();
                Moment::in_spans(d, width, |span| columns.moment(span.clone(), span, mul_mat))
            }
        }
    }

    /// What tells `input` from all others, as far as [`Self::moment`] depends on it. To hash the samples takes far less
    /// time than to multiply them, and no memory.
    pub(super) fn key(self, input: &CalibratedInput) -> InputKey {
        let (kind, n) = match &input.fitted {
            Fitted::Moment(known) => (0, known.n_tokens()),
            Fitted::Samples(samples) => (1, samples.len() as u64),
        };
        let sizes = [self.max_dim as u64, input.d() as u64, kind, n];
        let mut hash = Sha256::new();
        add(&mut hash, sizes.into_iter().map(u64::to_le_bytes));
        match &input.fitted {
            Fitted::Moment(known) => {
                add(&mut hash, known.packed().iter().map(|v| v.to_le_bytes()));
            }
            Fitted::Samples(samples) => {
                add(&mut hash, samples.stored().iter().map(|v| v.to_le_bytes()));
                add(&mut hash, samples.scales().iter().map(|v| v.to_le_bytes()));
            }
        }
        hash.finalize().into()
    }

    /// The shrinkage for the moment behind `metrics` and codes of `weights` with `params`, and the metric with it.
    pub(super) fn metric(
        self,
        metrics: &mut InputMetrics,
        params: &SectionsParams,
        input: &CalibratedInput,
        (weights, shape): (&[f32], MatrixShape),
        context: &EncodeContext<'_>,
    ) -> Result<(f64, Arc<Metric>), CodecError> {
        if let Shrink::Fixed(share) = self.shrink {
            return Ok((share, metrics.with_shrinkage(share, shape)?));
        }
        let probe = Probe::new(params, weights, shape, context)?;
        probe.choose_shrink(metrics, context, |left| {
            let (rows, shape, mul_mat) = (probe.rows(), probe.shape(), context.mul_mat);
            match input.holdout_moment() {
                Some(h) => functional_error(left, rows, shape, &h, mul_mat).ratio(),
                None => {
                    let inputs = input.holdout_samples();
                    token_error(left, rows, shape, &inputs, mul_mat).ratio_of_sums
                }
            }
        })
    }
}

/// Adds `values` to `hash`, many at a time.
fn add<const N: usize>(hash: &mut Sha256, values: impl Iterator<Item = [u8; N]>) {
    let mut values = values.peekable();
    let mut block = Vec::with_capacity(HASHED_VALUES * N);
    while values.peek().is_some() {
        block.clear();
        block.extend(values.by_ref().take(HASHED_VALUES).flatten());
        hash.update(&block);
    }
}
