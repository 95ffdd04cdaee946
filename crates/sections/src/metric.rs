//! What an error of the weights costs: E|e x|^2 = e H e^T for inputs with second moment H = E[x x^T], by blocks of 8
//! inputs.

use std::sync::Arc;

use format::sections::BLOCK;
use format::{CodecError, MatrixShape};
use numerics::{FactoredMoment, MatMul, Moment, PAD};
use rayon::prelude::*;

use crate::beam::{BlockFactor, identity};

const _: () = assert!(PAD == BLOCK, "factors are read in blocks");

/// Smallest share of the mean importance that an input keeps.
const IMPORTANCE_FLOOR: f32 = 1e-6;

/// Second moment of the inputs, scaled to mean diagonal 1: what errors cost.
#[derive(Debug)]
pub struct Metric {
    pub(crate) d_in: usize,
    pub(crate) n_blocks: usize,
    /// Diagonal of H, `[d_in]`.
    pub(crate) diagonal: Vec<f32>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Diagonal H, all entries equal.
    White,
    Diagonal,
    /// With off-diagonal entries.
    Full(FactoredMoment),
}

impl Metric {
    pub(crate) fn white(d_in: usize) -> Self {
        Self { d_in, n_blocks: d_in.div_ceil(BLOCK), diagonal: vec![1.0; d_in], kind: Kind::White }
    }

    /// Metric of inputs with mean squares `h`, `[d_in]`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `h` has another length, is negative or not finite.
    pub fn diagonal(h: &[f32], shape: MatrixShape) -> Result<Self, CodecError> {
        if h.len() != shape.d_in || h.iter().any(|v| !(v.is_finite() && *v >= 0.0)) {
            let reason = "it needs one finite mean square per input".to_owned();
            let value = format!("{} values", h.len());
            return Err(CodecError::Parameter { name: "--imatrix", value, shape, reason });
        }
        let mean = h.iter().map(|v| f64::from(*v)).sum::<f64>() / h.len() as f64;
        if mean == 0.0 {
            return Ok(Self::white(shape.d_in));
        }
        let relative = |v: &f32| ((f64::from(*v) / mean) as f32).max(IMPORTANCE_FLOOR);
        let diagonal = h.iter().map(relative).collect();
        Ok(Self { diagonal, kind: Kind::Diagonal, ..Self::white(shape.d_in) })
    }

    /// Metric of inputs with second moment `moment`, drawn and damped as [`FactoredMoment::new`] says.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if the moment is for another number of inputs, has a negative diagonal or is not
    /// finite.
    pub fn full(
        moment: Arc<Moment>,
        share: f64,
        damping: f64,
        shape: MatrixShape,
    ) -> Result<Self, CodecError> {
        let d = moment.d();
        if d != shape.d_in || !moment.is_usable() {
            return Err(wrong_moment(d, shape));
        }
        Ok(match FactoredMoment::new(moment, share, damping) {
            None => Self::white(d),
            Some(full) => {
                Self { diagonal: full.diagonal(), kind: Kind::Full(full), ..Self::white(d) }
            }
        })
    }

    /// Checks that the metric is one of matrices of `shape`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if not.
    pub(crate) fn check(&self, shape: MatrixShape) -> Result<(), CodecError> {
        if self.d_in == shape.d_in { Ok(()) } else { Err(wrong_moment(self.d_in, shape)) }
    }

    /// The second moment's off-diagonal part, if it has one.
    pub(crate) fn as_full(&self) -> Option<&FactoredMoment> {
        match &self.kind {
            Kind::Full(full) => Some(full),
            Kind::White | Kind::Diagonal => None,
        }
    }

    /// The factor of block `block` by itself; rows and columns of padded inputs are zero.
    pub(crate) fn block(&self, block: usize) -> BlockFactor {
        let start = block * BLOCK;
        let width = BLOCK.min(self.d_in - start);
        let mut factor = identity(width);
        match &self.kind {
            Kind::White => {}
            Kind::Diagonal => {
                (0..width).for_each(|i| factor[i][i] = self.diagonal[start + i].sqrt());
            }
            Kind::Full(full) => factor = full.factor_block(start),
        }
        factor
    }

    /// `out = rows H`, both [d_in, n]; `moments` are those of [`FactoredMoment::damped`], none without off-diagonal moments.
    pub(crate) fn multiply(
        &self,
        moments: &[Vec<f32>],
        rows: &[f32],
        mul_mat: &dyn MatMul,
        out: &mut [f32],
    ) {
        let Self { d_in, diagonal, kind, .. } = self;
        match kind {
            Kind::White => out.copy_from_slice(rows),
            Kind::Diagonal => {
                out.par_chunks_mut(*d_in).zip(rows.par_chunks(*d_in)).for_each(|(out, row)| {
                    for ((out, v), h) in out.iter_mut().zip(row).zip(diagonal) {
                        *out = v * h;
                    }
                });
            }
            Kind::Full(full) => full.multiply(moments, rows, mul_mat, out),
        }
    }
}

fn wrong_moment(d: usize, shape: MatrixShape) -> CodecError {
    let reason = "the second moment is not that of d_in inputs, or not finite".to_owned();
    CodecError::Parameter { name: "--calib", value: format!("{d} inputs"), shape, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_bad_moments() {
        let shape = MatrixShape::new(2, 1);
        let full = |h: &[f32], d| Metric::full(Arc::new(Moment::whole(h, d)), 0.0, 0.1, shape);
        assert!(full(&[1.0; 9], 3).is_err());
        assert!(full(&[1.0, 0.0, f32::NAN, 1.0], 2).is_err());
        assert!(full(&[-1.0, 0.0, 0.0, 1.0], 2).is_err());
        assert!(Metric::diagonal(&[1.0], shape).is_err());
        assert!(Metric::diagonal(&[1.0, f32::INFINITY], shape).is_err());
        assert_eq!(full(&[0.0; 4], 2).unwrap().block(0), identity(2));
    }
}
