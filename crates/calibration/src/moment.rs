//! Second moments of inputs, summed up batch by batch.

use numerics::MatMul;
use rayon::prelude::*;

/// Columns of H that one product computes: few enough that little beyond the triangle is computed,
/// many enough that products run at full speed.
const BLOCK: usize = 128;

/// Columns that are transposed together: one cache line of F32.
const TILE: usize = 16;

/// H = sum x x^T over tokens: its lower triangle, row after row.
///
/// Element (i, j), j <= i, is `packed[i * (i + 1) / 2 + j]` (numpy: `H[np.tril_indices(d)]`).
#[derive(Clone, Debug, PartialEq)]
pub struct SecondMoment {
    d: usize,
    n_tokens: u64,
    packed: Vec<f32>,
}

/// Buffers of [`SecondMoment::add`], kept between calls.
#[derive(Debug, Default)]
pub struct MomentScratch {
    transposed: Vec<f32>,
    product: Vec<f32>,
}

/// Number of values in the triangle of a [d, d] matrix, `None` on overflow.
pub(crate) fn packed_len(d: usize) -> Option<usize> {
    Some(d.checked_mul(d.checked_add(1)?)? / 2)
}

impl SecondMoment {
    /// The moment of no tokens, for inputs of `d` values.
    ///
    /// # Panics
    /// If `d` is 0, or so large that the triangle overflows.
    #[must_use]
    pub fn new(d: usize) -> Self {
        assert!(d > 0, "inputs have at least one value");
        let len = packed_len(d).expect("callers limit d");
        Self { d, n_tokens: 0, packed: vec![0.0; len] }
    }

    /// A moment from its triangle; `None` if the length does not fit `d`.
    pub(crate) fn from_packed(d: usize, n_tokens: u64, packed: Vec<f32>) -> Option<Self> {
        (d > 0 && packed_len(d) == Some(packed.len())).then_some(Self { d, n_tokens, packed })
    }

    /// Length of an input.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// Number of tokens in the sum.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The triangle: `d * (d + 1) / 2` values, see [`SecondMoment`].
    #[must_use]
    pub fn packed(&self) -> &[f32] {
        &self.packed
    }

    /// Adds a batch of inputs. The bytes depend on how tokens are cut into batches, not on threads.
    ///
    /// # Shapes
    /// `rows`: [d, n], one row per token.
    ///
    /// # Panics
    /// If `rows` does not hold whole rows.
    pub fn add(&mut self, rows: &[f32], mat_mul: &dyn MatMul, scratch: &mut MomentScratch) {
        let d = self.d;
        assert!(rows.len().is_multiple_of(d), "the batch must hold whole rows of {d} values");
        let n = rows.len() / d;
        if n == 0 {
            return;
        }
        by_value(rows, d, &mut scratch.transposed);
        for start in (0..d).step_by(BLOCK) {
            let end = (start + BLOCK).min(d);
            // rows start..end of the triangle need columns 0..end
            let (a, b) = (&scratch.transposed[..end * n], &scratch.transposed[start * n..end * n]);
            scratch.product.resize((end - start) * end, 0.0);
            mat_mul.mul_mat(a, b, n, &mut scratch.product);
            for (i, product) in (start..end).zip(scratch.product.chunks_exact(end)) {
                let first = i * (i + 1) / 2;
                let row = &mut self.packed[first..=first + i];
                row.iter_mut().zip(product).for_each(|(sum, p)| *sum += p);
            }
        }
        self.n_tokens += n as u64;
    }

    /// Adds the sum over other tokens.
    ///
    /// # Panics
    /// If `other` is of inputs of another length.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.d, other.d, "moments of one input");
        self.packed.iter_mut().zip(&other.packed).for_each(|(sum, more)| *sum += more);
        self.n_tokens += other.n_tokens;
    }

    /// Floating point operations that `n_tokens` tokens need: one multiplication and one addition per
    /// element of the triangle.
    #[must_use]
    pub fn flops(d: usize, n_tokens: u64) -> f64 {
        d as f64 * (d as f64 + 1.0) * n_tokens as f64
    }

    /// The mean over tokens of x x^T, [d, d].
    #[must_use]
    pub fn mean(&self) -> Vec<f32> {
        let tokens = self.n_tokens.max(1) as f64;
        self.expand(|sum| (f64::from(sum) / tokens) as f32)
    }

    /// Entry (i, j), j <= i, of [`Self::mean`].
    ///
    /// # Panics
    /// If there is no such entry.
    #[inline]
    #[must_use]
    pub fn mean_at(&self, i: usize, j: usize) -> f32 {
        let tokens = self.n_tokens.max(1) as f64;
        (f64::from(self.packed[i * (i + 1) / 2..][..=i][j]) / tokens) as f32
    }

    /// The sum over tokens of x x^T, [d, d].
    #[must_use]
    pub fn sum(&self) -> Vec<f32> {
        self.expand(|sum| sum)
    }

    /// The mean over tokens of x_i^2, `[d]`.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f32> {
        let tokens = self.n_tokens.max(1) as f64;
        (0..self.d).map(|i| (f64::from(self.diagonal(i)) / tokens) as f32).collect()
    }

    fn diagonal(&self, i: usize) -> f32 {
        self.packed[i * (i + 1) / 2 + i]
    }

    fn expand(&self, value: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
        let d = self.d;
        let mut full = vec![0.0; d * d];
        full.par_chunks_mut(d).enumerate().for_each(|(i, row)| {
            let first = i * (i + 1) / 2;
            for (j, out) in row.iter_mut().enumerate() {
                let packed = if j <= i { first + j } else { j * (j + 1) / 2 + i };
                *out = value(self.packed[packed]);
            }
        });
        full
    }

    /// Checks what every second moment fulfils: finite, no negative mean square, and
    /// |h_ij|^2 <= h_ii h_jj. The error says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let roots: Vec<f64> = (0..self.d).map(|i| f64::from(self.diagonal(i)).sqrt()).collect();
        let bad_row = (0..self.d).into_par_iter().find_first(|&i| {
            let row = &self.packed[i * (i + 1) / 2..][..=i];
            // Negative or NaN diagonals make a root NaN, for which no comparison holds.
            let fits = |(h, root): (&f32, &f64)| {
                h.is_finite()
                    && f64::from(h.abs()) <= roots[i] * root * CAUCHY_SLACK + f64::MIN_POSITIVE
            };
            !row.iter().zip(&roots).all(fits)
        });
        match bad_row {
            None => Ok(()),
            Some(i) => Err(format!(
                "row {i} is not that of a second moment (not finite, or h_ij^2 > h_ii * h_jj)"
            )),
        }
    }
}

/// Room for rounding in the Cauchy-Schwarz check: sums of 10^6 F32 products are far better than this.
const CAUCHY_SLACK: f64 = 1.001;

/// `out[j * n + t] = rows[t * d + j]`, as products over n tokens, which are returned, read it.
///
/// # Shapes
/// `rows`: [d, n], one row per token; `out`: [n, d].
pub fn by_value(rows: &[f32], d: usize, out: &mut Vec<f32>) -> usize {
    let n = rows.len() / d;
    out.resize(d * n, 0.0);
    out.par_chunks_mut(n.max(1) * TILE).enumerate().for_each(|(tile, out)| {
        let n_columns = out.len() / n;
        for (t, row) in rows.chunks_exact(d).enumerate() {
            for (j, value) in row[tile * TILE..][..n_columns].iter().enumerate() {
                out[j * n + t] = *value;
            }
        }
    });
    n
}

#[cfg(test)]
mod tests {
    use numerics::testing::on_threads;
    use numerics::{ReferenceMatMul, TiledMatMul};
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64)
            .map(|i| crate::mix::mix(i ^ seed << 32) as i32 as f32 / 2f32.powi(31))
            .collect()
    }

    fn moment(d: usize, batches: &[&[f32]], mat_mul: &dyn MatMul) -> SecondMoment {
        let mut moment = SecondMoment::new(d);
        let mut scratch = MomentScratch::default();
        for batch in batches {
            moment.add(batch, mat_mul, &mut scratch);
        }
        moment
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn is_the_sum_of_outer_products(d in 1usize..300, n in 0usize..40, cut in 0usize..40) {
            let rows = values(d * n, 7);
            let (first, second) = rows.split_at(cut.min(n) * d);
            let moment = moment(d, &[first, second], &ReferenceMatMul);
            prop_assert_eq!(moment.n_tokens(), n as u64);
            let full = moment.sum();
            for i in 0..d {
                for j in [0, i / 2, i, d - 1] {
                    let exact: f64 =
                        rows.chunks(d).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
                    let got = f64::from(full[i * d + j]);
                    prop_assert!((got - exact).abs() < 1e-4, "{} {}: {} {}", i, j, got, exact);
                    prop_assert_eq!(full[i * d + j], full[j * d + i]);
                }
            }
            prop_assert!(moment.check().is_ok());
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let (d, n) = (200, 50);
        let rows = values(d * n, 3);
        let one = on_threads(1, || moment(d, &[&rows], &TiledMatMul));
        for n_threads in 2..=4 {
            assert_eq!(one, on_threads(n_threads, || moment(d, &[&rows], &TiledMatMul)));
        }
        let reference = moment(d, &[&rows], &ReferenceMatMul);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        assert!(one.packed().iter().zip(reference.packed()).all(close));
    }

    #[test]
    fn means_divide_by_the_tokens() {
        let moment = moment(2, &[&[1.0, 2.0, 3.0, 0.0]], &ReferenceMatMul);
        assert_eq!(moment.packed(), [10.0, 2.0, 4.0]);
        assert_eq!(moment.mean(), [5.0, 1.0, 1.0, 2.0]);
        assert_eq!(moment.mean_squares(), [5.0, 2.0]);
        assert_eq!(SecondMoment::flops(2, 3), 18.0);
    }

    #[test]
    fn impossible_moments_are_found() {
        let check = |packed: [f32; 3]| {
            SecondMoment::from_packed(2, 1, packed.to_vec()).unwrap().check().is_ok()
        };
        assert!(check([1.0, 1.0, 1.0]) && check([0.0, 0.0, 2.0]));
        for bad in [
            [1.0, 2.0, 1.0],
            [-1.0, 0.0, 1.0],
            [1.0, f32::NAN, 1.0],
            [f32::INFINITY, 0.0, 1.0],
            [0.0, 0.1, 1.0],
        ] {
            assert!(!check(bad), "{bad:?}");
        }
        assert!(SecondMoment::from_packed(3, 1, vec![0.0; 5]).is_none());
        assert!(SecondMoment::from_packed(usize::MAX, 1, vec![]).is_none());
        assert!(SecondMoment::from_packed(0, 1, vec![]).is_none());
    }
}
