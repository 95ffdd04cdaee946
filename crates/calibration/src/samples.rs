//! Single inputs, kept in half precision with one scale each.

use std::ops::Range;

use half::f16;
use numerics::MatMul;
use rayon::prelude::*;

use crate::mix::mix;

/// Exponent that the largest value of a stored sample has: the top of F16, which leaves the most room
/// for small values beside massive ones.
const TOP_EXPONENT: i32 = 15;

/// Sampled inputs: `x = scale * stored`, where `scale` is a power of two, so that activations beyond the
/// range of F16 survive and nothing but the mantissa is rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    d: usize,
    values: Vec<f16>,
    scales: Vec<f32>,
}

impl Samples {
    /// No samples yet, of inputs of `d` values.
    ///
    /// # Panics
    /// If `d` is 0.
    #[must_use]
    pub fn new(d: usize) -> Self {
        assert!(d > 0, "inputs have at least one value");
        Self { d, values: Vec::new(), scales: Vec::new() }
    }

    /// Stored samples; the error says what is wrong with them.
    pub(crate) fn from_stored(
        d: usize,
        values: Vec<f16>,
        scales: Vec<f32>,
    ) -> Result<Self, &'static str> {
        if d == 0 || scales.len().checked_mul(d) != Some(values.len()) {
            return Err("the scales do not fit the samples");
        }
        if !scales.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err("a scale is not a positive number");
        }
        if !values.par_iter().all(|v| v.is_finite()) {
            return Err("a value is not finite");
        }
        Ok(Self { d, values, scales })
    }

    /// Appends one input of `d` finite values.
    ///
    /// # Panics
    /// If the length is wrong.
    pub fn push(&mut self, x: &[f32]) {
        assert_eq!(x.len(), self.d, "one input");
        let largest = x.iter().fold(0f32, |max, v| max.max(v.abs()));
        let scale = scale_for(largest);
        let inverse = 1.0 / f64::from(scale);
        self.values.extend(x.iter().map(|&v| f16::from_f64(f64::from(v) * inverse)));
        self.scales.push(scale);
    }

    /// Appends the samples of `other` at these `positions`.
    ///
    /// # Panics
    /// If `other` is of inputs of another length, or a position is none of its.
    pub fn append(&mut self, other: &Self, positions: impl IntoIterator<Item = usize>) {
        assert_eq!(self.d, other.d, "samples of one input");
        for i in positions {
            self.values.extend_from_slice(&other.values[i * self.d..][..self.d]);
            self.scales.push(other.scales[i]);
        }
    }

    /// Length of an input.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// The stored values, [d, n].
    #[must_use]
    pub fn stored(&self) -> &[f16] {
        &self.values
    }

    /// One scale per sample, `[n]`.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// All samples, [d, n].
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.values.len()];
        let rows = out.par_chunks_mut(self.d).zip(self.values.par_chunks(self.d));
        rows.zip(&self.scales).for_each(|((out, row), scale)| {
            out.iter_mut().zip(row).for_each(|(out, v)| *out = unpack(*v, *scale));
        });
        out
    }

    /// The values of a range of inputs, input by input, as products over tokens read them.
    ///
    /// # Shapes
    /// Result: [n, range] of n samples.
    ///
    /// # Panics
    /// If the range reaches beyond d.
    #[must_use]
    pub fn by_value(&self, range: Range<usize>) -> Vec<f32> {
        assert!(range.end <= self.d, "the range must lie within the input");
        let n = self.len();
        let mut out = vec![0.0; n * range.len()];
        let columns = out.par_chunks_mut(n.max(1)).zip(range);
        columns.for_each(|(column, j)| self.copy_input(j, column));
        out
    }

    /// The samples by input instead of by token, for [`SampleColumns::moment`].
    #[must_use]
    pub fn columns(&self) -> SampleColumns {
        let n = self.len();
        let mut values = vec![0.0; self.values.len()];
        let columns = values.par_chunks_mut(n.max(1)).enumerate();
        columns.for_each(|(j, column)| self.copy_input(j, column));
        SampleColumns { d: self.d, n, values }
    }

    /// Puts value `j` of all samples at the start of `column`.
    fn copy_input(&self, j: usize, column: &mut [f32]) {
        let rows = self.values.chunks(self.d).zip(&self.scales);
        for (out, (row, scale)) in column.iter_mut().zip(rows) {
            *out = unpack(row[j], *scale);
        }
    }
}

/// The value that `stored` stands for; what rounding put beyond F32 is the largest F32.
fn unpack(stored: f16, scale: f32) -> f32 {
    (stored.to_f32() * scale).clamp(f32::MIN, f32::MAX)
}

/// The power of two that brings `largest` into [2^15, 2^16 - 2^4], what F16 can hold; 1 for zeros.
fn scale_for(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = f64::from(largest).log2().floor() as i32 - TOP_EXPONENT;
    let scale = 2f64.powi(exponent.max(f32::MIN_EXP - 1));
    // Values just below a power of two would round up beyond F16's range.
    let fits = f64::from(largest) / scale <= f64::from(f16::MAX);
    (if fits { scale } else { 2.0 * scale }) as f32
}

/// Samples stored by input: column j holds x_j of all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleColumns {
    d: usize,
    n: usize,
    /// [n, d]
    values: Vec<f32>,
}

impl SampleColumns {
    /// Rows `rows` and columns `columns` of the mean of x x^T over the samples, so that a matrix too
    /// large to form can be worked on in blocks.
    ///
    /// # Shapes
    /// Result: [rows.len(), columns.len()]; since H is symmetric, entry `j * rows.len() + i` is
    /// H(rows.start + i, columns.start + j).
    ///
    /// # Panics
    /// If a range reaches beyond d.
    #[must_use]
    pub fn moment(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        mat_mul: &dyn MatMul,
    ) -> Vec<f32> {
        assert!(rows.end <= self.d && columns.end <= self.d, "ranges must lie within the input");
        let mut out = vec![0.0; rows.len() * columns.len()];
        if self.n == 0 || out.is_empty() {
            return out;
        }
        let part = |range: Range<usize>| &self.values[range.start * self.n..range.end * self.n];
        mat_mul.mul_mat(part(rows), part(columns), self.n, &mut out);
        let inverse = 1.0 / self.n as f32;
        out.par_iter_mut().for_each(|v| *v *= inverse);
        out
    }
}

/// `n` of `total` positions, ascending: one from each of `n` equal parts, at a place that `seed` decides,
/// so that no period of the text or of the contexts can coincide with the choice. All if `n >= total`.
#[must_use]
pub fn stratified(total: u64, n: u64, seed: u64) -> Vec<u64> {
    let n = n.min(total);
    let part = |i: u64| (u128::from(i) * u128::from(total) / u128::from(n)) as u64;
    (0..n)
        .map(|i| {
            let (first, end) = (part(i), part(i + 1));
            first + mix(mix(seed) ^ i) % (end - first)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;
    use proptest::prelude::*;

    use super::*;
    use crate::{MomentScratch, SecondMoment};

    /// Half a unit in the last of F16's 11 bits.
    const F16_ROUNDING: f32 = 1.0 / 2048.0;

    fn samples(d: usize, rows: &[f32]) -> Samples {
        let mut samples = Samples::new(d);
        rows.chunks(d).for_each(|x| samples.push(x));
        samples
    }

    proptest! {
        #[test]
        fn values_survive_at_any_scale(
            x in proptest::collection::vec(-1f32..1.0, 1..40),
            exponent in -90i32..125,
        ) {
            let x: Vec<f32> = x.iter().map(|v| v * 2f32.powi(exponent)).collect();
            let stored = samples(x.len(), &x);
            let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in x.iter().zip(stored.to_f32()) {
                // exact to F16's mantissa down to 2^-29 of the largest value
                prop_assert!((a - b).abs() <= a.abs() * F16_ROUNDING + largest * 2f32.powi(-39));
            }
            let read =
                Samples::from_stored(x.len(), stored.stored().to_vec(), stored.scales().to_vec());
            prop_assert_eq!(read, Ok(stored));
        }

        #[test]
        fn one_of_each_part_is_chosen(total in 0u64..5000, n in 1u64..600, seed: u64) {
            let chosen = stratified(total, n, seed);
            prop_assert_eq!(chosen.len() as u64, n.min(total));
            prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(chosen.iter().all(|&c| c < total));
            let n = n.min(total);
            for (i, &c) in chosen.iter().enumerate() {
                prop_assert!(c >= i as u64 * total / n && c < (i as u64 + 1) * total / n);
            }
        }
    }

    #[test]
    fn extremes_survive() {
        for x in [f32::MAX, f32::MIN_POSITIVE, 65504.0, 65519.9, 65520.0, 131_071.0, 0.0, 1e-45] {
            let back = samples(1, &[x]).to_f32()[0];
            assert!(back.is_finite() && (back - x).abs() <= x * F16_ROUNDING, "{x} {back}");
        }
    }

    #[test]
    fn periods_of_the_contexts_do_not_decide_what_is_sampled() {
        let positions: std::collections::BTreeSet<u64> =
            stratified(512 * 512, 512, 0).iter().map(|t| t % 512).collect();
        assert!(positions.len() > 250, "{}", positions.len());
        assert_ne!(stratified(512 * 512, 512, 0), stratified(512 * 512, 512, 1));
    }

    #[test]
    fn blocks_of_the_moment_are_those_of_the_whole() {
        let (d, n) = (7, 5);
        let rows: Vec<f32> = (0..d * n).map(|i| (i * 37 % 23) as f32 - 11.0).collect();
        let mut moment = SecondMoment::new(d);
        moment.add(&rows, &ReferenceMatMul, &mut MomentScratch::default());
        let full = moment.mean();
        let block = samples(d, &rows).columns().moment(1..6, 4..7, &ReferenceMatMul);
        for j in 4..7 {
            for i in 1..6 {
                let (a, b) = (full[j * d + i], block[(j - 4) * 5 + i - 1]);
                assert!((a - b).abs() < 1e-4, "{i} {j}: {a} {b}");
            }
        }
        assert!(samples(d, &rows).columns().moment(3..3, 0..2, &ReferenceMatMul).is_empty());
    }

    #[test]
    fn damaged_samples_are_refused() {
        let one = f16::ONE;
        assert!(Samples::from_stored(2, vec![one; 4], vec![1.0; 2]).is_ok());
        assert!(Samples::from_stored(2, vec![one; 4], vec![1.0; 3]).is_err());
        assert!(Samples::from_stored(0, vec![], vec![]).is_err());
        assert!(Samples::from_stored(usize::MAX, vec![], vec![1.0; 2]).is_err());
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(Samples::from_stored(1, vec![one], vec![scale]).is_err(), "{scale}");
        }
        assert!(Samples::from_stored(1, vec![f16::NAN], vec![1.0]).is_err());
    }
}
