//! Some rows of a matrix with a dictionary of their own, to try settings on before all rows are coded.

use std::sync::Arc;

use codec::{Codec, EncodeContext};
use format::{CodecError, MatrixShape};

use super::parts::Atoms;
use super::{Moment, SectionsCodec, SectionsParams, encode};

/// Rows at most.
const ROWS: usize = 64;
/// One row in so many at most: what is tried on them must stay cheap against coding all.
const SHARE: usize = 8;
/// Beam: settings rank as they do with a wide one.
const BEAM: usize = 4;
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
            max_samples: SAMPLES.min(params.max_samples),
            learn_rounds: LEARN_ROUNDS.min(params.learn_rounds),
            ..params.clone()
        };
        let codec = SectionsCodec::new(params);
        let shape = MatrixShape::new(shape.d_in, n);
        let mut probe = Self { codec, rows, shape, atoms: Atoms::new() };
        probe.atoms = probe.job(&super::Metric::white(shape.d_in), context).learn();
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

    /// What is left of the rows, [d_in, n], when they are coded for inputs with second moment `moment`;
    /// without one for the importance of `context`.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn error(
        &self,
        moment: Option<Arc<Moment>>,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<f32>, CodecError> {
        let codec = match moment {
            Some(moment) => self.codec.clone().with_second_moment(moment),
            None => self.codec.clone(),
        };
        self.error_in(&codec.metric(self.shape, context.importance)?, context)
    }

    /// The same for a metric that is known.
    pub(crate) fn error_in(
        &self,
        metric: &super::Metric,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<f32>, CodecError> {
        let sidecars = self.job(metric, context).run_with(self.atoms.clone())?;
        let mut error = self.codec.decode(&sidecars, self.shape)?;
        error.iter_mut().zip(&self.rows).for_each(|(e, w)| *e = w - *e);
        Ok(error)
    }

    fn job<'a>(
        &'a self,
        metric: &'a super::Metric,
        context: &'a EncodeContext<'a>,
    ) -> encode::Job<'a> {
        let (params, weights) = (&self.codec.params, self.rows.as_slice());
        encode::Job { params, weights, shape: self.shape, metric, context }
    }
}
