//! What an error of the weights costs: E|e x|^2 = e H e^T for inputs with second moment H = E[x x^T].
//!
//! With H = R R^T, R upper triangular, the cost is |e R|^2, and column i of e R holds errors of columns up
//! to i only. So columns can be coded from left to right, each block making up for the errors before it;
//! it is what GPTQ (Frantar et al. 2022) gets from the Cholesky factor of H^-1, in the form that needs
//! no inverse (LDLQ, Chee et al. 2023), by blocks of 8 columns instead of single ones.

use codec::{CodecError, MatMul, MatrixShape};
use faer::Mat;
use rayon::prelude::*;

use super::beam::{BlockFactor, identity};
use super::layout::BLOCK;
use crate::linalg::cholesky;

/// Smallest share of the mean importance that an input keeps.
const IMPORTANCE_FLOOR: f32 = 1e-6;

/// Second moment of the inputs, scaled to mean diagonal 1.
pub(crate) struct Metric {
    pub(crate) d_in: usize,
    pub(crate) n_blocks: usize,
    /// Diagonal of H, `[d_in]`.
    pub(crate) diagonal: Vec<f32>,
    kind: Kind,
}

enum Kind {
    /// Diagonal H, all entries equal.
    White,
    Diagonal,
    Full(Full),
}

/// A second moment with off-diagonal entries.
pub(crate) struct Full {
    /// H, [d_in, d_in], damped.
    moment: Vec<f32>,
    /// R, row after row, padded to whole blocks with zeros.
    factor: Vec<f32>,
}

impl Metric {
    pub(crate) fn white(d_in: usize) -> Self {
        Self { d_in, n_blocks: d_in.div_ceil(BLOCK), diagonal: vec![1.0; d_in], kind: Kind::White }
    }

    /// Metric of inputs with mean squares `h`, `[d_in]`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `h` has another length, is negative or not finite.
    pub(crate) fn diagonal(h: &[f32], shape: MatrixShape) -> Result<Self, CodecError> {
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

    /// Metric of inputs with second moment `h`, [d_in, d_in], to whose diagonal `damping` times its mean
    /// is added; more, if that is not enough to make it positive definite.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `h` has another size, a negative diagonal or is not finite.
    pub(crate) fn full(h: &[f32], damping: f64, shape: MatrixShape) -> Result<Self, CodecError> {
        let d = shape.d_in;
        let fits = d.checked_mul(d) == Some(h.len()) && h.par_iter().all(|v| v.is_finite());
        if !fits || (0..d).any(|i| h[i * d + i] < 0.0) {
            let reason = "the second moment is not a finite d_in x d_in matrix".to_owned();
            let value = format!("{} values", h.len());
            return Err(CodecError::Parameter { name: "--calib", value, shape, reason });
        }
        let mean = (0..d).map(|i| f64::from(h[i * d + i])).sum::<f64>() / d as f64;
        if mean == 0.0 {
            return Ok(Self::white(d));
        }
        let mut moment = vec![0.0f32; d * d];
        moment.par_chunks_mut(d).enumerate().for_each(|(i, row)| {
            for (j, v) in row.iter_mut().enumerate() {
                *v = ((f64::from(h[i * d + j]) + f64::from(h[j * d + i])) / 2.0 / mean) as f32;
            }
        });
        let mut added = damping;
        let factor = loop {
            match upper_factor(&moment, d, added) {
                Some(factor) => break factor,
                None => added = (added * 10.0).max(1e-6),
            }
        };
        (0..d).for_each(|i| moment[i * d + i] += added as f32);
        let diagonal = (0..d).map(|i| moment[i * d + i]).collect();
        Ok(Self { diagonal, kind: Kind::Full(Full { moment, factor }), ..Self::white(d) })
    }

    /// The second moment's off-diagonal part, if it has one.
    pub(crate) fn as_full(&self) -> Option<&Full> {
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
            Kind::Full(full) => {
                let padded = self.n_blocks * BLOCK;
                for (i, row) in factor.iter_mut().enumerate() {
                    let at = (start + i) * padded + start;
                    row.copy_from_slice(&full.factor[at..at + BLOCK]);
                }
            }
        }
        factor
    }

    /// `out = rows H`, both [d_in, n].
    pub(crate) fn apply_moment(&self, rows: &[f32], mul_mat: &dyn MatMul, out: &mut [f32]) {
        match &self.kind {
            Kind::White => out.copy_from_slice(rows),
            Kind::Diagonal => {
                out.par_chunks_mut(self.d_in).zip(rows.par_chunks(self.d_in)).for_each(
                    |(out, row)| {
                        for ((out, v), h) in out.iter_mut().zip(row).zip(&self.diagonal) {
                            *out = v * h;
                        }
                    },
                );
            }
            Kind::Full(full) => mul_mat.mul_mat(&full.moment, rows, self.d_in, out),
        }
    }
}

impl Full {
    /// Adds to `carry`, which starts at column `first` of a row, what the errors `errors` of the columns
    /// from `row` on add to e R there.
    #[inline(always)]
    pub(crate) fn push_errors(
        &self,
        padded: usize,
        (row, errors): (usize, &[f32]),
        first: usize,
        carry: &mut [f32],
    ) {
        let n = carry.len();
        let factor = |i: usize| &self.factor[(row + i) * padded + first..][..n];
        // four rows at a time: the sums are loaded and stored a quarter as often
        let (quads, rest) = errors.as_chunks::<4>();
        for (q, e) in quads.iter().enumerate() {
            let (a, b) = (factor(4 * q), factor(4 * q + 1));
            let (c, d) = (factor(4 * q + 2), factor(4 * q + 3));
            for ((((out, a), b), c), d) in carry.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *out += (e[0] * a + e[1] * b) + (e[2] * c + e[3] * d);
            }
        }
        for (i, e) in rest.iter().enumerate() {
            crate::linalg::add_scaled(carry, *e, factor(quads.len() * 4 + i));
        }
    }

    /// R transposed without padding, [d_in, d_in]: what `mul_mat` takes for products `rows R`.
    pub(crate) fn factor_transposed(&self, d_in: usize, padded: usize) -> Vec<f32> {
        let mut out = vec![0.0; d_in * d_in];
        out.par_chunks_mut(d_in).enumerate().for_each(|(j, column)| {
            for (i, v) in column.iter_mut().enumerate() {
                *v = self.factor[i * padded + j];
            }
        });
        out
    }
}

/// R of `moment + damping = R R^T`, row after row and padded to whole blocks; `None` if that is not positive
/// definite. It is the Cholesky factor of the matrix with rows and columns reversed.
fn upper_factor(moment: &[f32], d: usize, damping: f64) -> Option<Vec<f32>> {
    let mut reversed = Mat::<f64>::from_fn(d, d, |i, j| {
        let v = f64::from(moment[(d - 1 - i) * d + d - 1 - j]);
        if i == j { v + damping } else { v }
    });
    if !cholesky(&mut reversed) {
        return None;
    }
    let padded = d.div_ceil(BLOCK) * BLOCK;
    let mut factor = vec![0.0f32; padded * padded];
    for i in 0..d {
        for j in i..d {
            factor[i * padded + j] = reversed[(d - 1 - i, d - 1 - j)] as f32;
        }
    }
    Some(factor)
}

#[cfg(test)]
mod tests {
    use codec::ReferenceMatMul;

    use super::*;

    #[test]
    fn factor_and_moment_give_the_same_cost() {
        let d = 11;
        let shape = MatrixShape::new(d, 1);
        let x: Vec<f32> = (0..d * 30).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let mut h = vec![0.0f32; d * d];
        for x in x.chunks(d) {
            (0..d * d).for_each(|i| h[i] += x[i / d] * x[i % d]);
        }
        let metric = Metric::full(&h, 0.01, shape).unwrap();
        let full = metric.as_full().unwrap();
        let e: Vec<f32> = (0..d).map(|i| (i as f32).cos()).collect();
        let mut he = vec![0.0; d];
        metric.apply_moment(&e, &ReferenceMatMul, &mut he);
        let expected: f32 = he.iter().zip(&e).map(|(a, b)| a * b).sum();
        let mut er = vec![0.0; d];
        ReferenceMatMul.mul_mat(&full.factor_transposed(d, 16), &e, d, &mut er);
        let cost: f32 = er.iter().map(|v| v * v).sum();
        assert!((cost - expected).abs() < 1e-4 * expected, "{cost} {expected}");
        // the same, errors pushed from block to block
        let mut carry = vec![0.0; 16];
        full.push_errors(16, (0, &e), 0, &mut carry);
        for (a, b) in carry.iter().zip(&er) {
            assert!((a - b).abs() < 1e-4);
        }
        assert!(carry[d..].iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_singular_moment_is_damped_until_it_factors() {
        let h = vec![1.0f32; 9]; // rank 1
        let metric = Metric::full(&h, 0.0, MatrixShape::new(3, 1)).unwrap();
        assert!(metric.block(0).iter().flatten().all(|v| v.is_finite()));
        assert!(metric.diagonal[0] > 1.0);
    }

    #[test]
    fn rejects_bad_moments() {
        let shape = MatrixShape::new(2, 1);
        assert!(Metric::full(&[1.0; 3], 0.1, shape).is_err());
        assert!(Metric::full(&[1.0, 0.0, f32::NAN, 1.0], 0.1, shape).is_err());
        assert!(Metric::full(&[-1.0, 0.0, 0.0, 1.0], 0.1, shape).is_err());
        assert!(Metric::diagonal(&[1.0], shape).is_err());
        assert!(Metric::diagonal(&[1.0, f32::INFINITY], shape).is_err());
        assert_eq!(Metric::full(&[0.0; 4], 0.1, shape).unwrap().block(0), identity(2));
    }
}
