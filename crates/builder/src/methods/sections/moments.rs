//! Second moments of a calibration's inputs, and how far they are trusted.

use std::sync::Arc;

use calibration::{CalibratedInput, Fitted};
use format::CodecError;
use numerics::functional::{functional_error, token_error};
use numerics::{MatMul, Moment, Shrink};
use sections::{InputMetrics, Metric, Probe, SectionsParams};

use crate::Encoding;

/// Inputs of a span where the whole second moment would be too large: 4096^2 entries are 64 MB.
const SPAN: usize = 4096;

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

    /// The shrinkage for the moment behind `metrics` and codes with `params`, and the metric with it.
    pub(super) fn metric(
        self,
        metrics: &mut InputMetrics,
        params: &SectionsParams,
        input: &CalibratedInput,
        encoding: &Encoding<'_>,
    ) -> Result<(f64, Arc<Metric>), CodecError> {
        let Encoding { item, weights, context, .. } = encoding;
        if let Shrink::Fixed(share) = self.shrink {
            return Ok((share, metrics.with_shrinkage(share, item.shape)?));
        }
        let probe = Probe::new(params, weights, item.shape, context)?;
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
