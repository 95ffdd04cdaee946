//! What an error of the weights costs: E|e x|^2 = e H e^T for inputs with second moment H = E[x x^T].
//!
//! With H = R R^T, R upper triangular, the cost is |e R|^2, and column i of e R holds errors of columns up
//! to i only. So columns can be coded from left to right, each block making up for the errors before it;
//! it is what GPTQ (Frantar et al. 2022) gets from the Cholesky factor of H^-1, in the form that needs
//! no inverse (LDLQ, Chee et al. 2023), by blocks of 8 columns instead of single ones.

use codec::MatMul;
use faer::Mat;
use format::sections::BLOCK;
use format::{CodecError, MatrixShape};
use rayon::prelude::*;

use super::beam::{BlockFactor, identity};
use super::moment::Moment;
use crate::linalg::cholesky;

/// Rows of a factor that are written together.
const FACTOR_ROWS: usize = 32;
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
    /// Inputs of a span; the last may have fewer.
    width: usize,
    spans: Vec<Span>,
}

/// Consecutive inputs whose products are known; with those of other spans they are 0.
struct Span {
    /// First input.
    start: usize,
    /// Number of inputs.
    n: usize,
    /// H, [n, n], damped.
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

    /// Metric of inputs with second moment `h`, to whose diagonal `damping` times its mean is added; more,
    /// if that is not enough to make it positive definite.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `h` is for another number of inputs, has a negative diagonal or is not
    /// finite.
    pub(crate) fn full(h: &Moment, damping: f64, shape: MatrixShape) -> Result<Self, CodecError> {
        let d = shape.d_in;
        let usable = |(_, n, h): (usize, usize, &[f32])| {
            h.par_iter().all(|v| v.is_finite()) && (0..n).all(|i| h[i * n + i] >= 0.0)
        };
        if h.d() != d || !h.spans().all(usable) {
            let reason = "the second moment is not that of d_in inputs, or not finite".to_owned();
            let value = format!("{} inputs", h.d());
            return Err(CodecError::Parameter { name: "--calib", value, shape, reason });
        }
        let trace = |(_, n, h): (usize, usize, &[f32])| -> f64 {
            (0..n).map(|i| f64::from(h[i * n + i])).sum()
        };
        let mean = h.spans().map(trace).sum::<f64>() / d as f64;
        if mean == 0.0 {
            return Ok(Self::white(d));
        }
        let spans: Vec<Span> =
            h.spans().map(|(start, n, h)| Span::new((start, n), h, mean, damping)).collect();
        let diagonal = spans.iter().flat_map(|s| (0..s.n).map(|i| s.moment[i * s.n + i])).collect();
        let kind = Kind::Full(Full { width: h.width(), spans });
        Ok(Self { diagonal, kind, ..Self::white(d) })
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
                let span = full.span(start);
                for (i, row) in factor.iter_mut().enumerate() {
                    let first = start - span.start;
                    row.copy_from_slice(&span.factor_row(first + i)[first..first + BLOCK]);
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
            Kind::Full(full) => {
                let moments: Vec<&[f32]> = full.spans.iter().map(|s| s.moment.as_slice()).collect();
                full.multiply(&moments, rows, mul_mat, out);
            }
        }
    }
}

impl Full {
    /// The span of an input.
    #[inline(always)]
    fn span(&self, input: usize) -> &Span {
        &self.spans[input / self.width]
    }

    /// Adds to `carry`, which starts at column `first` of a row, what the errors `errors` of the columns
    /// from `row` on, all in one span, add to e R there.
    #[inline(always)]
    pub(crate) fn push_errors(
        &self,
        (row, errors): (usize, &[f32]),
        first: usize,
        carry: &mut [f32],
    ) {
        let span = self.span(row);
        let (row, end) = (row - span.start, span.start + span.padded());
        let n = carry.len().min(end.saturating_sub(first));
        if n == 0 {
            return;
        }
        let (first, carry) = (first - span.start, &mut carry[..n]);
        let factor = |i: usize| &span.factor_row(row + i)[first..][..n];
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

    /// R transposed without padding, span by span: what [`Self::multiply`] takes for products `rows R`.
    pub(crate) fn factor_transposed(&self) -> Vec<Vec<f32>> {
        self.spans.iter().map(Span::factor_transposed).collect()
    }

    /// `out = rows M`, both [d_in, n], where M has the transposes of `matrices`, one for each span, on its diagonal.
    pub(crate) fn multiply<M: AsRef<[f32]>>(
        &self,
        matrices: &[M],
        rows: &[f32],
        mul_mat: &dyn MatMul,
        out: &mut [f32],
    ) {
        if let ([span], [matrix]) = (self.spans.as_slice(), matrices) {
            return mul_mat.mul_mat(matrix.as_ref(), rows, span.n, out);
        }
        let d_in = self.spans.iter().map(|span| span.n).sum();
        for (span, matrix) in self.spans.iter().zip(matrices) {
            let columns = span.start..span.start + span.n;
            let part: Vec<f32> =
                rows.chunks_exact(d_in).flat_map(|row| &row[columns.clone()]).copied().collect();
            let mut product = vec![0.0; part.len()];
            mul_mat.mul_mat(matrix.as_ref(), &part, span.n, &mut product);
            for (out, product) in out.chunks_exact_mut(d_in).zip(product.chunks_exact(span.n)) {
                out[columns.clone()].copy_from_slice(product);
            }
        }
    }
}

impl Span {
    /// The span of `n` inputs from `start` on with moment `h`, [n, n], over `mean`.
    fn new((start, n): (usize, usize), h: &[f32], mean: f64, damping: f64) -> Self {
        let mut moment = vec![0.0f32; n * n];
        moment.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            for (j, v) in row.iter_mut().enumerate() {
                *v = ((f64::from(h[i * n + j]) + f64::from(h[j * n + i])) / 2.0 / mean) as f32;
            }
        });
        let mut added = damping;
        let factor = loop {
            match upper_factor(&moment, n, added) {
                Some(factor) => break factor,
                None => added = (added * 10.0).max(1e-6),
            }
        };
        (0..n).for_each(|i| moment[i * n + i] += added as f32);
        Self { start, n, moment, factor }
    }

    /// Inputs with padding.
    #[inline(always)]
    fn padded(&self) -> usize {
        self.n.next_multiple_of(BLOCK)
    }

    /// Row `i` of R, with padding.
    #[inline(always)]
    fn factor_row(&self, i: usize) -> &[f32] {
        let padded = self.padded();
        &self.factor[i * padded..(i + 1) * padded]
    }

    /// R transposed without padding, [n, n].
    fn factor_transposed(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.n];
        out.par_chunks_mut(self.n).enumerate().for_each(|(j, column)| {
            for (i, v) in column.iter_mut().enumerate() {
                *v = self.factor_row(i)[j];
            }
        });
        out
    }
}

/// R of `moment + damping = R R^T`, row after row and padded to whole blocks; `None` if that is not positive
/// definite. It is the Cholesky factor of the matrix with rows and columns reversed.
fn upper_factor(moment: &[f32], d: usize, damping: f64) -> Option<Vec<f32>> {
    // Column by column in memory; the moment is symmetric.
    let mut reversed = Mat::<f64>::from_fn(d, d, |i, j| {
        let v = f64::from(moment[(d - 1 - j) * d + d - 1 - i]);
        if i == j { v + damping } else { v }
    });
    if !cholesky(&mut reversed) {
        return None;
    }
    let padded = d.div_ceil(BLOCK) * BLOCK;
    let mut factor = vec![0.0f32; padded * padded];
    let (reversed, band) = (&reversed, padded * FACTOR_ROWS);
    factor.par_chunks_mut(band).enumerate().for_each(|(band, rows)| {
        let first = band * FACTOR_ROWS;
        // Rows of R lie across the columns in memory: some of them at a time use whole cache lines.
        for j in first..d {
            for i in first..(first + FACTOR_ROWS).min(j + 1) {
                rows[(i - first) * padded + j] = reversed[(d - 1 - i, d - 1 - j)] as f32;
            }
        }
    });
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
        let metric = Metric::full(&Moment::whole(h, d), 0.01, shape).unwrap();
        costs_agree(&metric, d);
    }

    /// The cost of an error is e H e^T, |e R|^2, and that of errors pushed from column to column.
    fn costs_agree(metric: &Metric, d: usize) {
        let full = metric.as_full().unwrap();
        let e: Vec<f32> = (0..d).map(|i| (i as f32).cos()).collect();
        let mut he = vec![0.0; d];
        metric.apply_moment(&e, &ReferenceMatMul, &mut he);
        let expected: f32 = he.iter().zip(&e).map(|(a, b)| a * b).sum();
        let mut er = vec![0.0; d];
        full.multiply(&full.factor_transposed(), &e, &ReferenceMatMul, &mut er);
        let cost: f32 = er.iter().map(|v| v * v).sum();
        assert!((cost - expected).abs() < 1e-4 * expected, "{cost} {expected}");
        let mut carry = vec![0.0; d.next_multiple_of(BLOCK)];
        for span in &full.spans {
            let errors = &e[span.start..span.start + span.n];
            full.push_errors((span.start, errors), span.start, &mut carry[span.start..]);
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
        let moment = Moment::in_spans(d, width, |r| {
            r.clone().flat_map(|i| r.clone().map(move |j| h(i, j))).collect()
        });
        let metric = Metric::full(&moment, 0.0, MatrixShape::new(d, 1)).unwrap();
        costs_agree(&metric, d);
        let unit = |i: usize| (0..d).map(|j| f32::from(i == j)).collect::<Vec<f32>>();
        let mut row = vec![0.0; d];
        metric.apply_moment(&unit(64), &ReferenceMatMul, &mut row);
        assert!(row[63] == 0.0 && (row[65] - h(0, 1)).abs() < 1e-6);
        // an error in one span leaves the others alone
        let mut carry = vec![0.0; 152];
        metric.as_full().unwrap().push_errors((56, &[1.0; 8]), 64, &mut carry[64..]);
        assert!(carry.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn a_singular_moment_is_damped_until_it_factors() {
        let h = Moment::whole(vec![1.0f32; 9], 3); // rank 1
        let metric = Metric::full(&h, 0.0, MatrixShape::new(3, 1)).unwrap();
        assert!(metric.block(0).iter().flatten().all(|v| v.is_finite()));
        assert!(metric.diagonal[0] > 1.0);
    }

    #[test]
    fn rejects_bad_moments() {
        let shape = MatrixShape::new(2, 1);
        let full = |h: &[f32], d| Metric::full(&Moment::whole(h.to_vec(), d), 0.1, shape);
        assert!(full(&[1.0; 9], 3).is_err());
        assert!(full(&[1.0, 0.0, f32::NAN, 1.0], 2).is_err());
        assert!(full(&[-1.0, 0.0, 0.0, 1.0], 2).is_err());
        assert!(Metric::diagonal(&[1.0], shape).is_err());
        assert!(Metric::diagonal(&[1.0, f32::INFINITY], shape).is_err());
        assert_eq!(full(&[0.0; 4], 2).unwrap().block(0), identity(2));
    }
}
