//! Second moments as factors: E|e x|^2 = e H e^T for inputs with second moment H = E[x x^T].
//!
//! With H = R R^T, R upper triangular, the cost is |e R|^2, and column i of e R holds errors of columns up
//! to i only. So columns can be coded from left to right, each making up for the errors before it; it is what
//! GPTQ (Frantar et al. 2022) gets from the Cholesky factor of H^-1, in the form that needs no inverse
//! (LDLQ, Chee et al. 2023).

mod factor;

use std::sync::Arc;

use rayon::prelude::*;

use crate::linalg::{add_four_scaled, add_scaled};
use crate::moment::MomentSpan;
use crate::products::{Columns, add_combinations};
use crate::{MatMul, Moment, SPAN_STEP};
use factor::Factor;

/// Rows of a factor begin at multiples of so many columns and are padded with zeros to one, for those who read it
/// in blocks.
pub const PAD: usize = 8;

/// A second moment, shrunk, scaled to mean diagonal 1 and damped, with its factor.
#[derive(Debug)]
pub struct FactoredMoment {
    moment: Arc<Moment>,
    drawn: Drawn,
    factors: Vec<Factor>,
}

impl FactoredMoment {
    /// Factors H' = (1 - share) H + share (diag(H) + mean I) / 2 for `moment` H, which must be usable; mean is that of the
    /// diagonal. `damping` times this mean is added to the diagonal; more, if that is not enough to make H' positive definite.
    /// `None` if the diagonal is zero.
    #[must_use]
    pub fn new(moment: Arc<Moment>, share: f64, damping: f64) -> Option<Self> {
        let mean = moment.mean_square();
        if mean == 0.0 {
            return None;
        }
        let drawn = Drawn { share, mean };
        let factors = moment.spans().iter().map(|span| Factor::new(span, drawn, damping)).collect();
        Some(Self { moment, drawn, factors })
    }

    /// The diagonal of H, `[d]`.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f32> {
        let of = |(factor, span): (&Factor, &MomentSpan)| -> Vec<f32> {
            let entry = |i| self.drawn.entry(span, (i, i)) + factor.added as f32;
            (0..factor.n).map(entry).collect()
        };
        self.factors.iter().zip(self.moment.spans()).flat_map(of).collect()
    }

    /// H, span by span, [n, n] each: what [`Self::multiply`] takes for products `rows H`.
    #[must_use]
    pub fn damped(&self) -> Vec<Vec<f32>> {
        let of = |(factor, span): (&Factor, &MomentSpan)| {
            let n = factor.n;
            let mut out = vec![0.0; n * n];
            out.par_chunks_mut(n * SPAN_STEP).enumerate().for_each(|(band, rows)| {
                let first = band * SPAN_STEP;
                for (i, row) in (first..).zip(rows.chunks_exact_mut(n)) {
                    self.drawn.row(span, i, &mut row[..=i]);
                    row[i] += factor.added as f32;
                }
                // What lies right of the diagonal is read from the rows below, which are contiguous there.
                let mut below = [0.0; SPAN_STEP];
                for j in first + 1..n {
                    let width = SPAN_STEP.min(j - first).min(rows.len() / n);
                    self.drawn.part(span, (j, first), &mut below[..width]);
                    for (row, v) in rows.chunks_exact_mut(n).zip(&below[..width]) {
                        row[j] = *v;
                    }
                }
            });
            out
        };
        self.factors.iter().zip(self.moment.spans()).map(of).collect()
    }

    /// Inputs of a span; the last may have fewer.
    #[must_use]
    pub fn span_width(&self) -> usize {
        self.moment.width()
    }

    /// Rows and columns `start` to `start + PAD` of R; `start` is a multiple of [`PAD`]. Those of inputs that are not
    /// there are zero.
    #[must_use]
    pub fn factor_block(&self, start: usize) -> [[f32; PAD]; PAD] {
        let factor = self.factor(start);
        let first = start - factor.start;
        let mut block = [[0.0; PAD]; PAD];
        for (i, row) in block.iter_mut().enumerate().take(factor.n - first) {
            row.copy_from_slice(factor.row(first + i, first..first + PAD));
        }
        block
    }

    /// The factor of the span of an input.
    #[inline(always)]
    fn factor(&self, input: usize) -> &Factor {
        &self.factors[input / self.moment.width()]
    }

    /// Adds to `carry`, which starts at column `first` of a row, what the errors `errors` of the columns
    /// from `row` on, all in one span and before `first`, add to e R there.
    #[inline(always)]
    pub fn push_errors(&self, (row, errors): (usize, &[f32]), first: usize, carry: &mut [f32]) {
        let factor = self.factor(row);
        let (row, end) = (row - factor.start, factor.start + factor.padded());
        let n = carry.len().min(end.saturating_sub(first));
        if n == 0 {
            return;
        }
        let first = first - factor.start;
        let carry = &mut carry[..n];
        let values = |i: usize| factor.row(row + i, first..first + n);
        let (quads, rest) = errors.as_chunks::<4>();
        for (q, e) in quads.iter().enumerate() {
            let q = 4 * q;
            add_four_scaled(carry, e, [values(q), values(q + 1), values(q + 2), values(q + 3)]);
        }
        for (i, e) in rest.iter().enumerate() {
            add_scaled(carry, *e, values(quads.len() * 4 + i));
        }
    }

    /// Adds to all rows of `carry` what `errors` of the [`SPAN_STEP`] inputs from `start` on, a multiple of it, add to e R
    /// behind these.
    ///
    /// # Shapes
    /// `errors`: [`SPAN_STEP`, n]; `carry`: [d with padding, n].
    pub fn push_band(&self, start: usize, errors: &[f32], carry: &mut [f32]) {
        let factor = self.factor(start);
        let (band, stride) = factor.band((start - factor.start) / SPAN_STEP);
        let behind = SPAN_STEP.min(stride)..stride;
        let from = Columns { stride, range: behind.clone() };
        let range = start + behind.start..start + behind.end;
        let to = Columns { stride: carry.len() * SPAN_STEP / errors.len(), range };
        add_combinations((carry, &to), errors, (band, &from));
    }

    /// Adds to all rows of `images`, e H, what `changes` of the errors of up to [`SPAN_STEP`] inputs from `start` on add
    /// left of `start` and behind these inputs. `moments` are those of [`Self::damped`].
    ///
    /// # Shapes
    /// `changes`: [`SPAN_STEP`, n]; `images`: [d, n].
    pub fn push_changes(
        &self,
        moments: &[Vec<f32>],
        start: usize,
        changes: &[f32],
        images: &mut [f32],
    ) {
        let d = self.moment.d();
        let factor = self.factor(start);
        let (first, n) = (start - factor.start, factor.n);
        let end = n.min(first + SPAN_STEP);
        let rows = &moments[start / self.moment.width()][first * n..end * n];
        for range in [0..first, end..n] {
            let to = factor.start + range.start..factor.start + range.end;
            let (to, from) = (Columns { stride: d, range: to }, Columns { stride: n, range });
            add_combinations((images, &to), changes, (rows, &from));
        }
    }

    /// R transposed, span by span, [n, n] each: what [`Self::multiply`] takes for products `rows R`.
    #[must_use]
    pub fn factor_transposed(&self) -> Vec<Vec<f32>> {
        self.factors.iter().map(Factor::transposed).collect()
    }

    /// `out = rows M`, both [d, n], where M has the transposes of `matrices`, one for each span, on its diagonal.
    pub fn multiply(
        &self,
        matrices: &[Vec<f32>],
        rows: &[f32],
        mul_mat: &dyn MatMul,
        out: &mut [f32],
    ) {
        if let ([factor], [matrix]) = (self.factors.as_slice(), matrices) {
            return mul_mat.mul_mat(matrix, rows, factor.n, out);
        }
        let d = self.moment.d();
        for (factor, matrix) in self.factors.iter().zip(matrices) {
            let columns = factor.start..factor.start + factor.n;
            let part: Vec<f32> =
                rows.chunks_exact(d).flat_map(|row| &row[columns.clone()]).copied().collect();
            let mut product = vec![0.0; part.len()];
            mul_mat.mul_mat(matrix, &part, factor.n, &mut product);
            for (out, product) in out.chunks_exact_mut(d).zip(product.chunks_exact(factor.n)) {
                out[columns.clone()].copy_from_slice(product);
            }
        }
    }
}

/// How a moment's entries are read.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    /// How far they are drawn to one input by itself.
    share: f64,
    /// What they are divided by: the mean of the diagonal.
    mean: f64,
}

impl Drawn {
    /// Entry (i, j), j <= i.
    #[inline]
    fn entry(self, span: &MomentSpan, (i, j): (usize, usize)) -> f32 {
        let value = f64::from(span.row(i)[j]);
        (if i == j { self.own(value) } else { value * self.factor() }) as f32
    }

    /// Row i up to the diagonal, [i + 1].
    fn row(self, span: &MomentSpan, i: usize, out: &mut [f32]) {
        self.part(span, (i, 0), &mut out[..i]);
        out[i] = self.entry(span, (i, i));
    }

    /// The entries (i, first) and so on, all left of the diagonal.
    fn part(self, span: &MomentSpan, (i, first): (usize, usize), out: &mut [f32]) {
        let factor = self.factor();
        for (out, v) in out.iter_mut().zip(&span.row(i)[first..i]) {
            *out = (f64::from(*v) * factor) as f32;
        }
    }

    /// What entries beside the diagonal are multiplied by.
    #[inline]
    fn factor(self) -> f64 {
        (1.0 - self.share) / self.mean
    }

    /// What `value` on the diagonal becomes.
    #[inline]
    fn own(self, value: f64) -> f64 {
        let value = value / self.mean;
        value + self.share * (0.5 * (value + 1.0) - value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReferenceMatMul;

    #[test]
    fn factor_and_moment_give_the_same_cost() {
        let d = 11;
        let x: Vec<f32> = (0..d * 30).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let mut h = vec![0.0f32; d * d];
        for x in x.chunks(d) {
            (0..d * d).for_each(|i| h[i] += x[i / d] * x[i % d]);
        }
        for share in [0.0, 0.25] {
            let moment = Arc::new(Moment::whole(&h, d));
            costs_agree(&FactoredMoment::new(moment, share, 0.01).unwrap(), d);
        }
    }

    /// The cost of an error is e H e^T, |e R|^2, and that of errors pushed from column to column.
    fn costs_agree(factored: &FactoredMoment, d: usize) {
        let e: Vec<f32> = (0..d).map(|i| (i as f32).cos()).collect();
        let mut he = vec![0.0; d];
        factored.multiply(&factored.damped(), &e, &ReferenceMatMul, &mut he);
        let expected: f32 = he.iter().zip(&e).map(|(a, b)| a * b).sum();
        let mut er = vec![0.0; d];
        factored.multiply(&factored.factor_transposed(), &e, &ReferenceMatMul, &mut er);
        let cost: f32 = er.iter().map(|v| v * v).sum();
        assert!((cost - expected).abs() < 1e-4 * expected, "{cost} {expected}");
        let mut carry = vec![0.0; d.next_multiple_of(PAD)];
        for block in (0..d).step_by(PAD) {
            let own = factored.factor_block(block);
            let errors = &e[block..d.min(block + PAD)];
            for (e, row) in errors.iter().zip(own) {
                carry[block..].iter_mut().zip(row).for_each(|(c, r)| *c += e * r);
            }
            let next = block + PAD;
            factored.push_errors((block, errors), next, &mut carry[next..]);
        }
        for (a, b) in carry.iter().zip(&er) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        assert!(carry[d..].iter().all(|v| *v == 0.0));
        bands_agree(factored, &carry, &he);
    }

    /// What is handed on band by band, for several rows, are `carry`, e R, and `he`, e H, of the same errors.
    fn bands_agree(factored: &FactoredMoment, carry: &[f32], he: &[f32]) {
        const ROWS: usize = 3;
        let (d, padded) = (he.len(), carry.len());
        let e: Vec<f32> = (0..d).map(|i| (i as f32).cos()).collect();
        let moments = factored.damped();
        let (mut carries, mut images) = (vec![0.0; ROWS * padded], vec![0.0; ROWS * d]);
        let (mut carry, mut he) = (carry.to_vec(), he.to_vec());
        for start in (0..d).step_by(SPAN_STEP) {
            let inputs = start..d.min(start + SPAN_STEP);
            let mut errors = vec![0.0; ROWS * SPAN_STEP];
            for (row, errors) in errors.chunks_mut(SPAN_STEP).enumerate() {
                let scaled = e[inputs.clone()].iter().map(|e| e * (row + 1) as f32);
                errors.iter_mut().zip(scaled).for_each(|(to, e)| *to = e);
            }
            factored.push_band(start, &errors, &mut carries);
            factored.push_changes(&moments, start, &errors, &mut images);
            // What the band's inputs do to one another is not handed on.
            for (i, j) in inputs.clone().flat_map(|i| inputs.clone().map(move |j| (i, j))) {
                let factor = factored.factor(i);
                let (row, column) = (i - factor.start, j - factor.start);
                let span = &moments[i / factored.span_width()];
                he[j] -= e[i] * span[row * factor.n + column];
                if i <= j {
                    carry[j] -= e[i] * factor.row(row, column..column + 1)[0];
                }
            }
        }
        for row in 0..ROWS {
            let times = (row + 1) as f32;
            for (a, b) in carries[row * padded..].iter().zip(&carry) {
                assert!((a - times * b).abs() < 1e-3, "{a} {b}");
            }
            for (a, b) in images[row * d..].iter().zip(&he) {
                assert!((a - times * b).abs() < 1e-3, "{a} {b}");
            }
        }
    }

    #[test]
    fn spans_are_coupled_within_and_not_between() {
        let (d, width) = (150, 64);
        let h = |i: usize, j: usize| (-0.1 * (i as f32 - j as f32).abs()).exp();
        let moment = Arc::new(Moment::from_fn(d, width, h));
        let factored = FactoredMoment::new(moment, 0.0, 0.0).unwrap();
        costs_agree(&factored, d);
        let unit = |i: usize| (0..d).map(|j| f32::from(i == j)).collect::<Vec<f32>>();
        let mut row = vec![0.0; d];
        factored.multiply(&factored.damped(), &unit(64), &ReferenceMatMul, &mut row);
        assert!(row[63] == 0.0 && (row[65] - h(0, 1)).abs() < 1e-6);
        // an error in one span leaves the others alone
        let mut carry = vec![0.0; 152];
        factored.push_errors((56, &[1.0; 8]), 64, &mut carry[64..]);
        assert!(carry.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_large_moment_is_factored_in_f32_closely_enough() {
        let d = factor::IN_F64 + PAD;
        // A few directions hold most of it, as in the inputs of ffn_down.
        let large = |i: usize| if i.is_multiple_of(97) { 30.0 } else { 0.1 };
        let h = |i: usize, j: usize| {
            large(i) * large(j)
                + (-0.1 * i.abs_diff(j) as f32).exp() * f32::from(u8::from(i.abs_diff(j) < 64))
        };
        let moment = Arc::new(Moment::from_fn(d, d, h));
        let mean = moment.mean_square();
        let damping = 0.01;
        let factored = FactoredMoment::new(moment, 0.0, damping).unwrap();
        assert_eq!(factored.factors[0].added, damping, "no more is needed");
        let r = &factored.factors[0];
        for n in 0..300 {
            let (i, j) = (n * 7919 % d, n * 104_729 % d);
            let first = i.max(j);
            let (a, b) = (r.row(i, first..d), r.row(j, first..d));
            let product: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let expected = f64::from(h(i, j)) / mean + if i == j { damping } else { 0.0 };
            assert!((product - expected).abs() < 0.1 * damping, "{i} {j}: {product} {expected}");
        }
    }

    #[test]
    fn shrinking_draws_the_diagonal_halfway_to_its_mean() {
        let moment = Arc::new(Moment::whole(&[4.0, 2.0, 2.0, 3.0], 2));
        let factored = FactoredMoment::new(moment, 0.25, 0.5).unwrap();
        // 4 is drawn by 0.25 to (4 + 3.5) / 2, 3 to (3 + 3.5) / 2.
        let over_mean = [3.9375, 1.5, 1.5, 3.0625].map(|v: f32| v / 3.5);
        let expected = [over_mean[0] + 0.5, over_mean[1], over_mean[2], over_mean[3] + 0.5];
        for (a, b) in factored.damped()[0].iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert_eq!(factored.diagonal(), [factored.damped()[0][0], factored.damped()[0][3]]);
    }

    #[test]
    fn a_singular_moment_is_damped_until_it_factors() {
        let h = Arc::new(Moment::whole(&[1.0; 9], 3)); // rank 1
        let factored = FactoredMoment::new(h, 0.0, 0.0).unwrap();
        assert!(factored.factor_block(0).iter().flatten().all(|v| v.is_finite()));
        assert!(factored.diagonal()[0] > 1.0);
        let zero = Arc::new(Moment::whole(&[0.0; 9], 3));
        assert!(FactoredMoment::new(zero, 0.0, 0.0).is_none());
    }
}
