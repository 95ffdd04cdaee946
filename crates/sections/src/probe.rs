//! Some rows of a matrix with a dictionary of their own, to try settings on before all rows are coded.

use std::sync::Arc;

use format::{CodecError, MatrixShape};
use numerics::{Codec, EncodeContext};

use crate::parts::Atoms;
use crate::{InputMetrics, Metric, SectionsCodec, SectionsParams, encode};

/// Rows at most.
const ROWS: usize = 64;
/// One row in so many at most: what is tried on them must stay cheap against coding all.
const SHARE: usize = 8;
/// Beam: settings rank as they do with a wide one.
const BEAM: usize = 4;
/// Sweeps: these fit more closely to the moment, which has to be trusted less then.
const SWEEPS: usize = 1;
/// Blocks to learn from, at most.
const SAMPLES: usize = 4096;
/// Joint steps of learning.
const LEARN_ROUNDS: usize = 4;

/// Rows spread evenly over a matrix, and a dictionary learned from them.
#[derive(Clone, Debug)]
pub struct Probe {
    codec: SectionsCodec,
    rows: Vec<f32>,
    shape: MatrixShape,
    atoms: Atoms,
}

impl Probe {
    /// Rows of `weights`, which is of `shape`, for codes with `params`. The same whatever the number of
    /// threads.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `params` do not fit.
    ///
    /// # Panics
    /// If `weights` do not fill `shape`.
    pub fn new(
        params: &SectionsParams,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Self, CodecError> {
        params.check(shape)?;
        assert_eq!(weights.len(), shape.n_weights(), "weights do not fill {shape}");
        let n = (shape.d_out / SHARE).clamp(1, ROWS);
        let row = |i: usize| &weights[i * shape.d_out / n * shape.d_in..][..shape.d_in];
        let rows = (0..n).flat_map(|i| row(i).iter().copied()).collect();
        let params = SectionsParams {
            beam: BEAM.min(params.beam),
            rounds: 0,
            sweeps: params.sweeps.min(SWEEPS),
            max_samples: SAMPLES.min(params.max_samples),
            learn_rounds: LEARN_ROUNDS.min(params.learn_rounds),
            ..params.clone()
        };
        let codec = SectionsCodec::new(params);
        let shape = MatrixShape::new(shape.d_in, n);
        let mut probe = Self { codec, rows, shape, atoms: Atoms::new() };
        probe.atoms = probe.fit(&Metric::white(shape.d_in), context).learn();
        Ok(probe)
    }

    /// The rows, [d_in, n].
    #[must_use]
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Dimensions of [`Self::rows`].
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// What is left of the rows, [d_in, n], when they are coded for inputs with `metric`; without one for the
    /// importance of `context`.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn error(
        &self,
        metric: Option<Arc<Metric>>,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<f32>, CodecError> {
        let codec = match metric {
            Some(metric) => self.codec.clone().with_metric(metric),
            None => self.codec.clone(),
        };
        self.error_in(&*codec.metric(self.shape, context.importance)?, context)
    }

    /// The same for a metric that is known to fit.
    pub(crate) fn error_in(
        &self,
        metric: &Metric,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<f32>, CodecError> {
        let sidecars = self.fit(metric, context).run_with(self.atoms.clone())?;
        let mut error = self.codec.decode(&sidecars, self.shape)?;
        error.iter_mut().zip(&self.rows).for_each(|(e, w)| *e = w - *e);
        Ok(error)
    }

    /// The shrinkage of the moment behind `metrics` for rows like these, chosen by `score` of what is left of them
    /// ([`numerics::choose_shrink`]), and the metric with it.
    ///
    /// # Errors
    /// As [`Self::error`].
    pub fn choose_shrink(
        &self,
        metrics: &mut InputMetrics,
        context: &EncodeContext<'_>,
        mut score: impl FnMut(&[f32]) -> f64,
    ) -> Result<(f64, Arc<Metric>), CodecError> {
        numerics::choose_shrink(|share| {
            let metric = metrics.with_shrinkage(share, self.shape)?;
            Ok((score(&self.error_in(&metric, context)?), metric))
        })
    }

    fn fit<'a>(&'a self, metric: &'a Metric, context: &'a EncodeContext<'a>) -> encode::Fit<'a> {
        let (params, weights) = (&self.codec.params, self.rows.as_slice());
        encode::Fit { params, weights, shape: self.shape, metric, dictionary: None, context }
    }
}

#[cfg(test)]
mod tests {
    use numerics::functional::functional_error;
    use numerics::{Moment, Progress, ReferenceMatMul};

    use super::*;

    struct Quiet;

    impl Progress for Quiet {
        fn stage(&self, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
    }

    const D: usize = 128;

    /// Values of about unit size; different for every seed.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| uniform() + uniform() + uniform()).collect()
    }

    /// Second moment of `n` inputs with common parts.
    fn moment(n: usize, seed: u64) -> Vec<f32> {
        let mix = values(3 * D, 1);
        let (common, own) = (values(3 * n, seed), values(D * n, seed + 1));
        let x = |t: usize, i: usize| {
            0.1 * own[t * D + i] + (0..3).map(|j| common[3 * t + j] * mix[3 * i + j]).sum::<f32>()
        };
        let rows: Vec<f32> = (0..n * D).map(|i| x(i / D, i % D)).collect();
        let mut h = vec![0.0; D * D];
        for x in rows.chunks(D) {
            (0..D * D).for_each(|i| h[i] += x[i / D] * x[i % D]);
        }
        h
    }

    fn chosen(n_fitted: usize) -> f64 {
        let shape = MatrixShape::new(D, 400);
        let context = EncodeContext {
            mul_mat: &ReferenceMatMul,
            importance: None,
            seed: 3,
            progress: &Quiet,
        };
        let params = SectionsParams { sections: 4, damping: 1e-4, ..SectionsParams::default() };
        let probe = Probe::new(&params, &values(D * 400, 5), shape, &context).unwrap();
        assert_eq!(probe.shape(), MatrixShape::new(D, 50));
        let held_out = moment(4000, 17);
        let fitted = Moment::whole(&moment(n_fitted, 7), D);
        let mut metrics = InputMetrics::new(fitted, params.damping, None);
        let score = |left: &[f32]| {
            let (rows, shape) = (probe.rows(), probe.shape());
            functional_error(left, rows, shape, &held_out, &ReferenceMatMul).ratio()
        };
        probe.choose_shrink(&mut metrics, &context, score).unwrap().0
    }

    #[test]
    fn few_inputs_are_trusted_less_than_many() {
        let (few, many) = (chosen(D / 2), chosen(100 * D));
        assert!(few > many && many <= 0.01, "{few} {many}");
    }
}
