//! Small dense arithmetic with a fixed order of sums, so that results do not depend on threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::{factor, solve};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::ReborrowMut;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, Par};
use rayon::prelude::*;

/// Partial sums of [`dot`]: enough independent chains for any vector unit.
const LANES: usize = 16;

/// `sum_i a[i] * b[i]`, in an order fixed by the length alone.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
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
#[inline]
pub fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// `out += sum_i factors[i] * rows[i]`: four rows at a time, so that `out` is loaded and stored a quarter as often.
#[inline(always)]
pub fn add_four_scaled(out: &mut [f32], factors: &[f32; 4], rows: [&[f32]; 4]) {
    let [a, b, c, d] = rows;
    for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *out += (factors[0] * a + factors[1] * b) + (factors[2] * c + factors[3] * d);
    }
}

/// Scales `x` to norm 1 and returns whether that was possible (it was not zero or not finite).
#[inline]
pub fn normalize(x: &mut [f32]) -> bool {
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
pub struct GrowingCholesky {
    /// Lower triangle, row after row: row i has i + 1 entries.
    rows: Vec<f64>,
    /// Forward-solved right-hand side, L z = y.
    solved: Vec<f64>,
}

/// A vector is refused when less than this share of its squared norm is new.
const MIN_NEW_SHARE: f64 = 1e-4;

impl GrowingCholesky {
    /// A factor of nothing, with room for `n` vectors.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Self { rows: Vec::with_capacity(n * (n + 1) / 2), solved: Vec::with_capacity(n) }
    }

    /// Number of vectors accepted.
    #[must_use]
    pub fn n_accepted(&self) -> usize {
        self.solved.len()
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * (i + 1) / 2..(i + 1) * (i + 2) / 2]
    }

    /// Adds a vector with inner products `gram` to the accepted ones, `square` with itself and `y` with
    /// the vector that is wanted. Returns false, unchanged, if it is zero or nearly dependent.
    pub fn push(&mut self, gram: impl Iterator<Item = f32>, square: f32, y: f32) -> bool {
        let n = self.n_accepted();
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
    #[must_use]
    pub fn solve(&self, round: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut x = self.solved.clone();
        for i in (0..self.n_accepted()).rev() {
            let row = self.row(i);
            x[i] = round(x[i] / row[i]);
            for j in 0..i {
                x[j] -= row[j] * x[i];
            }
        }
        x
    }
}

/// Matrices of up to so many rows are factored in one piece by one thread, and systems solved likewise.
const WHOLE: usize = 2048;
/// Rows and columns of a tile of larger ones.
const TILE: usize = 256;
/// Right-hand sides that are solved for together.
const COLUMNS: usize = 64;

/// Replaces the lower triangle of the symmetric `a` by its Cholesky factor; false if `a` is not positive
/// definite.
///
/// faer's parallel sums depend on the number of threads in the last bits. So faer factors, solves and multiplies tiles
/// of fixed sizes, each by one thread, and the tiles of a step are shared out: the right-looking form (Golub and
/// Van Loan, Matrix Computations, 4.2.6).
pub fn cholesky(a: &mut Mat<f64>) -> bool {
    if a.nrows() <= WHOLE { factor_whole(a.as_mut()) } else { factor_in_tiles(a.as_mut(), TILE) }
}

fn factor_whole<T: RealField>(a: MatMut<'_, T>) -> bool {
    let scratch = factor::cholesky_in_place_scratch::<T>(a.nrows(), Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let exact = factor::LltRegularization::default();
    factor::cholesky_in_place(a, exact, Par::Seq, stack, Default::default()).is_ok()
}

fn factor_in_tiles(a: MatMut<'_, f64>, tile: usize) -> bool {
    let columns = a.par_col_chunks_mut(tile).enumerate().map(|(i, columns)| {
        let below = columns.nrows() - i * tile;
        columns.subrows_mut(i * tile, below)
    });
    factor_columns(&mut columns.collect::<Vec<_>>(), tile)
}

/// Factors a matrix of which `columns` holds `tile` columns each, from the diagonal on.
fn factor_columns<T: RealField>(columns: &mut [MatMut<'_, T>], tile: usize) -> bool {
    let minus_one = || T::zero() - T::one();
    let mut rest = columns;
    while let Some((first, trailing)) = rest.split_first_mut() {
        let width = first.ncols();
        let (mut corner, mut panel) = first.rb_mut().split_at_row_mut(width);
        if !factor_whole(corner.rb_mut()) {
            return false;
        }
        // panel := panel L^-T, row by row
        let corner = corner.as_ref();
        panel.rb_mut().par_row_chunks_mut(tile).for_each(|rows| {
            solve_lower_triangular_in_place(corner, rows.transpose_mut(), Par::Seq);
        });
        let panel = panel.as_ref();
        trailing.par_iter_mut().enumerate().for_each(|(i, columns)| {
            // Above the diagonal nothing is read.
            let (below, n) = (columns.nrows(), columns.ncols());
            let (rows, across) = (panel.subrows(i * tile, below), panel.subrows(i * tile, n));
            matmul(columns.rb_mut(), Accum::Add, rows, across.transpose(), minus_one(), Par::Seq);
        });
        rest = trailing;
    }
    true
}

/// A Cholesky factor that takes little more memory than its triangle, if it is large.
pub struct LowerTiles<T> {
    /// Columns of a part.
    tile: usize,
    /// The columns from the diagonal on.
    parts: Vec<Mat<T>>,
}

impl<T: RealField> LowerTiles<T> {
    /// The factor of a symmetric matrix of `n` rows whose entry (i, j), j <= i, is `entry(i, j)`; `None` if that is not
    /// positive definite. In F64 the same numbers as by [`cholesky`].
    #[must_use]
    pub fn cholesky(n: usize, entry: impl Fn(usize, usize) -> T + Sync) -> Option<Self> {
        let tile = if n <= WHOLE { n.max(1) } else { TILE };
        let part = |first: usize| {
            let entry = |i: usize, j: usize| entry(first + i.max(j), first + i.min(j));
            Mat::from_fn(n - first, tile.min(n - first), entry)
        };
        let starts: Vec<usize> = (0..n).step_by(tile).collect();
        let mut parts: Vec<Mat<T>> = starts.into_par_iter().map(part).collect();
        let mut columns: Vec<MatMut<'_, T>> = parts.iter_mut().map(Mat::as_mut).collect();
        factor_columns(&mut columns, tile).then_some(Self { tile, parts })
    }

    /// Entry (i, j), j <= i, of the factor.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> &T {
        let first = j / self.tile * self.tile;
        &self.parts[j / self.tile][(i - first, j - first)]
    }
}

/// Solves `a x = rhs` in place, `factor` being what [`cholesky`] made of a.
pub fn solve_with(factor: &Mat<f64>, rhs: &mut Mat<f64>) {
    let solve = |rhs: MatMut<'_, f64>| {
        let scratch = solve::solve_in_place_scratch::<f64>(factor.nrows(), rhs.ncols(), Par::Seq);
        let mut memory = MemBuffer::new(scratch);
        solve::solve_in_place(factor.as_ref(), rhs, Par::Seq, MemStack::new(&mut memory));
    };
    if factor.nrows() <= WHOLE {
        solve(rhs.as_mut());
    } else {
        rhs.as_mut().par_col_chunks_mut(COLUMNS).for_each(solve);
    }
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
        // vectors (2,0,0), (1,1,0), their sum, (0,0,3); wanted (1,2,3) = -0.5 a + 2 b + 1 d
        let v = [[2.0f32, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 3.0]];
        let wanted = [1.0f32, 2.0, 3.0];
        let mut kept: Vec<[f32; 3]> = Vec::new();
        let mut chol = GrowingCholesky::with_capacity(4);
        for v in v {
            let gram: Vec<f32> = kept.iter().map(|k| dot(k, &v)).collect();
            if chol.push(gram.into_iter(), dot(&v, &v), dot(&v, &wanted)) {
                kept.push(v);
            }
        }
        assert_eq!(kept.len(), 3);
        let x = chol.solve(|c| c);
        for (x, expected) in x.iter().zip([-0.5, 2.0, 1.0]) {
            assert!((x - expected).abs() < 1e-12, "{x} {expected}");
        }
    }

    /// Symmetric, and positive definite unless `spoiled`.
    fn symmetric(n: usize, spoiled: bool) -> Mat<f64> {
        let x = Mat::from_fn(n, n, |i, j| ((i * 31 + j * 17) % 101) as f64 / 50.0 - 1.0);
        let mut a = &x * x.transpose();
        (0..n).for_each(|i| a[(i, i)] += 0.5);
        if spoiled {
            a[(n - 2, n - 2)] = -1.0;
        }
        a
    }

    #[test]
    fn tiles_factor_as_the_whole_does_whatever_the_number_of_threads() {
        for n in [1, 7, 8, 9, 41] {
            let mut whole = symmetric(n, false);
            assert!(factor_whole(whole.as_mut()));
            let on = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut tiles = symmetric(n, false);
                assert!(pool.install(|| factor_in_tiles(tiles.as_mut(), 8)));
                tiles
            };
            let (one, three) = (on(1), on(3));
            for j in 0..n {
                for i in j..n {
                    assert_eq!(one[(i, j)].to_bits(), three[(i, j)].to_bits());
                    let (a, b) = (one[(i, j)], whole[(i, j)]);
                    assert!((a - b).abs() < 1e-9 * whole[(j, j)], "{n}: {a} {b}");
                }
            }
            assert!(n < 3 || !factor_in_tiles(symmetric(n, true).as_mut(), 8));
        }
    }

    #[test]
    fn tiles_of_their_own_factor_as_those_of_a_whole_matrix() {
        for n in [5, WHOLE + TILE + 3] {
            let entry = |i: usize, j: usize| {
                if i == j { 4.0 } else { 1.0 / (1.0 + i.abs_diff(j) as f64).powi(3) }
            };
            let mut whole = Mat::from_fn(n, n, entry);
            assert!(cholesky(&mut whole));
            let tiles = LowerTiles::cholesky(n, entry).unwrap();
            for j in 0..n {
                assert!(
                    (j..n).all(|i| tiles.get(i, j).to_bits() == whole[(i, j)].to_bits()),
                    "{n} {j}"
                );
            }
        }
        assert!(LowerTiles::cholesky(2, |_, _| -1.0f32).is_none());
    }

    #[test]
    fn a_large_system_is_solved_column_by_column_of_tiles() {
        let n = WHOLE + 3;
        let mut a = Mat::from_fn(n, n, |i, j| {
            if i == j { 4.0 } else { 1.0 / (1.0 + (i as f64 - j as f64).abs()).powi(3) }
        });
        let x = Mat::from_fn(n, COLUMNS + 1, |i, j| ((i * 7 + j * 3) % 11) as f64 - 5.0);
        let mut rhs = &a * &x;
        assert!(cholesky(&mut a));
        solve_with(&a, &mut rhs);
        let worst = (&rhs - &x).norm_max();
        assert!(worst < 1e-9, "{worst}");
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
