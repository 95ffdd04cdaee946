//! Small dense arithmetic with a fixed order of sums, so that results do not depend on threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::{factor, solve};
use faer::{Mat, Par};

/// Partial sums of [`dot`]: enough independent chains for any vector unit.
const LANES: usize = 16;

/// `sum_i a[i] * b[i]`, in an order fixed by the length alone.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `out += factor * x`.
pub(crate) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// Scales `x` to norm 1 and returns whether that was possible (it was not zero or not finite).
pub(crate) fn normalize(x: &mut [f32]) -> bool {
    let norm = dot(x, x).sqrt();
    let usable = norm.is_finite() && norm > f32::MIN_POSITIVE;
    let factor = if usable { norm.recip() } else { 0.0 };
    x.iter_mut().for_each(|v| *v = if usable { *v * factor } else { 0.0 });
    usable
}

/// Cholesky factor of a Gram matrix that grows by one row and column at a time.
///
/// A vector that is nearly a combination of those before it is refused instead of being damped: the
/// least-squares solution on the rest is then exact, and coefficients stay small enough for F16.
pub(crate) struct GrowingCholesky {
    /// Lower triangle, row after row: row i has i + 1 entries.
    rows: Vec<f64>,
    /// Forward-solved right-hand side, L z = y.
    solved: Vec<f64>,
}

/// A vector is refused when less than this share of its squared norm is new.
const MIN_NEW_SHARE: f64 = 1e-4;

impl GrowingCholesky {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { rows: Vec::with_capacity(n * (n + 1) / 2), solved: Vec::with_capacity(n) }
    }

    /// Number of vectors accepted.
    pub(crate) fn len(&self) -> usize {
        self.solved.len()
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * (i + 1) / 2..(i + 1) * (i + 2) / 2]
    }

    /// Adds a vector with inner products `gram` to the accepted ones, `square` with itself and `y` with
    /// the target. Returns false, unchanged, if it is zero or nearly dependent.
    pub(crate) fn push(&mut self, gram: impl Iterator<Item = f32>, square: f32, y: f32) -> bool {
        let n = self.len();
        let start = self.rows.len();
        let (mut pivot, mut z) = (f64::from(square), f64::from(y));
        for (i, g) in gram.take(n).enumerate() {
            let mut v = f64::from(g);
            for j in 0..i {
                v -= self.rows[start + j] * self.rows[i * (i + 1) / 2 + j];
            }
            v /= self.rows[i * (i + 1) / 2 + i];
            self.rows.push(v);
            pivot -= v * v;
            z -= v * self.solved[i];
        }
        // written so that NaN refuses as well
        if !(pivot > MIN_NEW_SHARE * f64::from(square) && pivot > 0.0) {
            self.rows.truncate(start);
            return false;
        }
        let root = pivot.sqrt();
        self.rows.push(root);
        self.solved.push(z / root);
        true
    }

    /// Least-squares coefficients; each passes through `round` before the earlier ones are solved, so
    /// that they make up for its rounding (nearest plane).
    pub(crate) fn solve(&self, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut x = self.solved.clone();
        for i in (0..self.len()).rev() {
            let row = self.row(i);
            x[i] = round(x[i] / row[i]);
            for j in 0..i {
                x[j] -= row[j] * x[i];
            }
        }
        x
    }
}

/// Replaces the lower triangle of the symmetric `a` by its Cholesky factor; false if `a` is not positive
/// definite. One thread: faer's parallel sums depend on the number of threads in the last bits.
pub(crate) fn cholesky(a: &mut Mat<f64>) -> bool {
    let n = a.nrows();
    let scratch = factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let exact = factor::LltRegularization::default();
    factor::cholesky_in_place(a.as_mut(), exact, Par::Seq, stack, Default::default()).is_ok()
}

/// Solves `a x = rhs` in place, `factor` being what [`cholesky`] made of a.
pub(crate) fn solve_with(factor: &Mat<f64>, rhs: &mut Mat<f64>) {
    let (n, columns) = (factor.nrows(), rhs.ncols());
    let scratch = solve::solve_in_place_scratch::<f64>(n, columns, Par::Seq);
    let mut memory = MemBuffer::new(scratch);
    solve::solve_in_place(factor.as_ref(), rhs.as_mut(), Par::Seq, MemStack::new(&mut memory));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_matches_the_plain_sum_for_every_length() {
        for n in 0..50 {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32 * 0.5).collect();
            let plain: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&a, &b), plain);
        }
    }

    #[test]
    fn cholesky_solves_and_refuses_dependent_vectors() {
        // vectors (2,0,0), (1,1,0), their sum, (0,0,3); target (1,2,3) = -0.5 a + 2 b + 1 d
        let v = [[2.0f32, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 3.0]];
        let target = [1.0f32, 2.0, 3.0];
        let mut kept: Vec<[f32; 3]> = Vec::new();
        let mut chol = GrowingCholesky::with_capacity(4);
        for v in v {
            let gram: Vec<f32> = kept.iter().map(|k| dot(k, &v)).collect();
            if chol.push(gram.into_iter(), dot(&v, &v), dot(&v, &target)) {
                kept.push(v);
            }
        }
        assert_eq!(kept.len(), 3);
        let x = chol.solve(|c| c);
        for (x, expected) in x.iter().zip([-0.5, 2.0, 1.0]) {
            assert!((x - expected).abs() < 1e-12, "{x} {expected}");
        }
    }

    #[test]
    fn normalize_refuses_zero() {
        let mut x = [3.0, 4.0];
        assert!(normalize(&mut x));
        assert_eq!(x, [0.6, 0.8]);
        assert!(!normalize(&mut [0.0, 0.0]));
        assert!(!normalize(&mut [f32::INFINITY, 0.0]));
    }
}
