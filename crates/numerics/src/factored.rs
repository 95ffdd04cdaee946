//! Second moments as factors: E|e x|^2 = e H e^T for inputs with second moment H = E[x x^T].
//!
//! With H = R R^T, R upper triangular, the cost is |e R|^2, and column i of e R holds errors of columns up
//! to i only. So columns can be coded from left to right, each making up for the errors before it; it is what
//! GPTQ (Frantar et al. 2022) gets from the Cholesky factor of H^-1, in the form that needs no inverse
//! (LDLQ, Chee et al. 2023).

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::linalg::{LowerTiles, add_four_scaled, add_scaled};
use crate::moment::MomentSpan;
use crate::{MatMul, Moment};

/// Rows of a factor begin at multiples of so many columns and are padded with zeros to one, for those who read it
/// in blocks.
pub const PAD: usize = 8;

/// Spans of up to so many inputs are factored in F64.
const IN_F64: usize = 4096;

/// A second moment, shrunk, scaled to mean diagonal 1 and damped, with its factor.
#[derive(Debug)]
pub struct FactoredMoment {
    moment: Arc<Moment>,
    drawn: Drawn,
    factors: Vec<Factor>,
}

/// The factor of a span.
#[derive(Debug)]
struct Factor {
    /// First input.
    start: usize,
    /// Number of inputs.
    n: usize,
    /// Added to the diagonal of H.
    added: f64,
    /// R by bands of [`PAD`] rows, whose rows begin at the diagonal, see [`Factor::row`].
    values: Vec<f32>,
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
            out.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = self.drawn.entry(span, (i.max(j), i.min(j)));
                }
                row[i] += factor.added as f32;
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
        let value = f64::from(span.row(i)[j]) / self.mean;
        let own = if i == j { 0.5 * (value + 1.0) } else { 0.0 };
        (value + self.share * (own - value)) as f32
    }
}

impl Factor {
    fn new(span: &MomentSpan, drawn: Drawn, damping: f64) -> Self {
        let (start, n) = (span.start(), span.n());
        let mut added = damping;
        loop {
            if let Some(values) = upper_factor(span, drawn, added) {
                return Self { start, n, added, values };
            }
            added = (added * 10.0).max(1e-6);
        }
    }

    /// Inputs with padding.
    #[inline(always)]
    fn padded(&self) -> usize {
        self.n.next_multiple_of(PAD)
    }

    /// Columns `columns` of row `i` of R, with padding; none is left of the band's diagonal block.
    #[inline(always)]
    fn row(&self, i: usize, columns: Range<usize>) -> &[f32] {
        let (padded, left) = (self.padded(), i / PAD * PAD);
        let at = band_start(padded, i / PAD) + i % PAD * (padded - left);
        &self.values[at..at + padded - left][columns.start - left..columns.end - left]
    }

    /// R transposed without padding, [n, n].
    fn transposed(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.n];
        out.par_chunks_mut(self.n).enumerate().for_each(|(j, column)| {
            for (i, v) in column.iter_mut().enumerate().take(j + 1) {
                *v = self.row(i, j..j + 1)[0];
            }
        });
        out
    }
}

/// Where the band `band` of a factor with `padded` columns begins: each has [`PAD`] columns less than the one before.
#[inline(always)]
fn band_start(padded: usize, band: usize) -> usize {
    PAD * band * padded - PAD * PAD * band * band.saturating_sub(1) / 2
}

/// R of `span + damping = R R^T` by bands, see [`Factor`]; `None` if that is not positive definite. It is the Cholesky
/// factor of the matrix with rows and columns reversed.
///
/// That of a large span is made in F32, in half the time: what the sums of products lose is a small part of any damping that is
/// worth its name. Where F32 finds no positive definite matrix F64 may.
fn upper_factor(span: &MomentSpan, drawn: Drawn, damping: f64) -> Option<Vec<f32>> {
    let d = span.n();
    let entry = |i: usize, j: usize| {
        let v = f64::from(drawn.entry(span, (d - 1 - j, d - 1 - i)));
        if i == j { v + damping } else { v }
    };
    let single = if d > IN_F64 { LowerTiles::cholesky(d, |i, j| entry(i, j) as f32) } else { None };
    match single {
        Some(reversed) => Some(by_bands(d, |i, j| *reversed.get(i, j))),
        None => {
            let reversed = LowerTiles::cholesky(d, entry)?;
            Some(by_bands(d, |i, j| *reversed.get(i, j) as f32))
        }
    }
}

/// R by bands from the factor of the matrix with rows and columns reversed.
fn by_bands(d: usize, reversed: impl Fn(usize, usize) -> f32 + Sync) -> Vec<f32> {
    let padded = d.next_multiple_of(PAD);
    let mut values = vec![0.0f32; band_start(padded, padded / PAD)];
    let mut rest = values.as_mut_slice();
    let bands: Vec<(usize, &mut [f32])> = (0..padded)
        .step_by(PAD)
        .map(|first| {
            let band;
            (band, rest) = std::mem::take(&mut rest).split_at_mut(PAD * (padded - first));
            (first, band)
        })
        .collect();
    bands.into_par_iter().for_each(|(first, band)| {
        // Rows of R lie across the columns in memory: some of them at a time use whole cache lines.
        for j in first..d {
            for i in first..(first + PAD).min(j + 1) {
                band[(i - first) * (padded - first) + j - first] = reversed(d - 1 - i, d - 1 - j);
            }
        }
    });
    values
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
        let d = IN_F64 + PAD;
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
