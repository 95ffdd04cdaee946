//! Second moments of a calibration's inputs, and how far they are trusted.

use std::sync::Arc;

use calibration::{CalibratedInput, Experts, Fitted, SecondMoment, SquareSums};
use format::{CodecError, MatrixShape};
use numerics::functional::{functional_error, token_error};
use numerics::{EncodeContext, MatMul, Moment, Shrink};
use sections::{InputKey, InputMetrics, Metric, Probe, SectionsParams};
use sha2::{Digest, Sha256};

use crate::importance::blended;

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
        let width = self.width(d);
        match &input.fitted {
            Fitted::Moment(known) => Moment::from_fn(d, width, |i, j| known.mean_at(i, j)),
            Fitted::Samples(samples) => {
                let columns = samples.columns();
                Moment::in_spans(d, width, |span| columns.moment(span.clone(), span, mul_mat))
            }
        }
    }

    /// The second moment of the inputs of one expert, from what it has seen and what all have together, which counts as much as
    /// so many tokens as the input has values: few tokens say little about many values. Where only the squares of what it has
    /// seen are known, the correlations are those of all.
    ///
    /// # Panics
    /// If nothing is known of that expert.
    pub fn of_expert(self, input: &CalibratedInput, expert: usize) -> Moment {
        let own = match &input.experts {
            Experts::Unknown => panic!("nothing is known of experts"),
            Experts::Moments(all) => &all[expert],
            Experts::Squares(all) => return self.of_squares(input, &all[expert]),
        };
        let d = own.d();
        let n_own = own.n_tokens() as f64;
        let weight = n_own / (n_own + d as f64);
        let pooled = match &input.fitted {
            Fitted::Moment(moment) => Some((moment, trace(moment))),
            Fitted::Samples(_) => None,
        };
        let scale = pooled.map_or(1.0, |(_, trace_of_all)| match trace(own) {
            // A mean that counts what each of a token's inputs gives by itself, or all together.
            of_own if n_own > 0.0 && trace_of_all > 0.0 => of_own / trace_of_all,
            _ => 1.0,
        });
        Moment::from_fn(d, d, |i, j| {
            let prior = pooled.map_or(0.0, |(moment, _)| f64::from(moment.mean_at(i, j)) * scale);
            (weight * f64::from(own.mean_at(i, j)) + (1.0 - weight) * prior) as f32
        })
    }

    fn of_squares(self, input: &CalibratedInput, own: &SquareSums) -> Moment {
        let all = input.mean_squares();
        let squares = blended(&all, &own.mean_squares(), own.n_tokens() as f64);
        let pooled = match &input.fitted {
            Fitted::Moment(pooled) => Some(pooled),
            Fitted::Samples(_) => None,
        };
        let scale = |(own, all): (&f32, &f32)| if *all > 0.0 { (own / all).sqrt() } else { 0.0 };
        let scales: Vec<f32> = squares.iter().zip(&all).map(scale).collect();
        let d = input.d();
        Moment::from_fn(d, self.width(d), |i, j| match pooled {
            _ if i == j => squares[i],
            Some(pooled) => pooled.mean_at(i, j) * scales[i] * scales[j],
            None => 0.0,
        })
    }

    /// Inputs of a span of an input of `d` values.
    fn width(self, d: usize) -> usize {
        if d > self.max_dim { SPAN.min(self.max_dim) } else { d }
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

/// Mean square of an input's values, all together.
fn trace(moment: &SecondMoment) -> f64 {
    (0..moment.d()).map(|i| f64::from(moment.mean_at(i, i))).sum()
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

#[cfg(test)]
mod tests {
    use calibration::{GrowingInput, MomentScratch, Samples};
    use numerics::ReferenceMatMul;

    use super::*;

    fn seen(rows: &[f32]) -> SecondMoment {
        let mut moment = SecondMoment::new(2);
        moment.add(rows, &ReferenceMatMul, &mut MomentScratch::default());
        moment
    }

    /// What is known of an expert with these inputs, beside others in which the two values are as large and have nothing, or
    /// `correlated` of it, in common.
    fn beside(experts: Experts, correlated: f32) -> CalibratedInput {
        let all = seen(&[1.0, 1.0, 1.0, 2.0 * correlated - 1.0]);
        CalibratedInput {
            fitted: Fitted::Moment(all),
            holdout_moment: None,
            holdout: Samples::new(2),
            experts,
        }
    }

    const MOMENTS: Moments = Moments { shrink: Shrink::Auto, max_dim: 8 };

    #[test]
    fn an_expert_counts_as_much_as_it_has_seen() {
        let of = |own: &SecondMoment| {
            let input = beside(Experts::Moments(vec![own.clone()]), 0.0);
            MOMENTS.of_expert(&input, 0)
        };
        let diagonal = |a: f32, b: f32| Moment::whole(&[a, 0.0, 0.0, b], 2);
        // Nothing seen: as all are.
        assert_eq!(of(&SecondMoment::new(2)), diagonal(1.0, 1.0));
        // As many tokens as values: halfway, and as large as what it has seen.
        let own = seen(&[2.0, 0.0, 2.0, 0.0]);
        assert_eq!(of(&own), diagonal(3.0, 1.0));
        // Many tokens: what it has seen.
        let weight = 2000.0 / 2002.0;
        let rest = 2.0 * (1.0 - weight);
        let many = seen(&[2.0, 0.0].repeat(2000));
        assert_eq!(of(&many), diagonal((4.0 * weight + rest) as f32, rest as f32));
    }

    #[test]
    fn squares_take_the_correlations_of_all() {
        let mut growing = GrowingInput::new(2, 8);
        let by = (&ReferenceMatMul as &dyn MatMul, &mut MomentScratch::default());
        // As many tokens as all count: halfway between mean squares of 4 and 0 and those of all, made as large.
        growing.add_by_expert(&[2.0, 0.0].repeat(16), &[0; 16], (2, false), by);
        let input = beside(growing.finish().experts, 1.0);
        let whole = |h: [f32; 4]| Moment::whole(&h, 2);
        let root = 3f32.sqrt();
        assert_eq!(MOMENTS.of_expert(&input, 0), whole([3.0, root, root, 1.0]));
        // Nothing seen: as all are.
        assert_eq!(MOMENTS.of_expert(&input, 1), whole([1.0; 4]));
    }
}
