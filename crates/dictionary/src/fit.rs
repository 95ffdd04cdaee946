//! Choosing the atoms of one row and their coefficients.
//!
//! Everything happens in the scaled space of [`crate::metric::Metric`], where the error is a plain sum of
//! squares. Supports come from k-WTA (the k atoms with the largest |correlation|) or from
//! orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993). Schemes without coefficients
//! use, of the chosen atoms in their order, the prefix that fits best: a further sign may well do harm.

use super::gram::Gram;
use super::selection::Selection;
use crate::Encoder;
use crate::metric::squared_norms;
use numerics::linalg::{GrowingCholesky, add_scaled, dot};

/// Atoms prepared for fitting rows.
pub(crate) struct Fitter<'a> {
    select: Selection,
    d_in: usize,
    /// Atoms, [d_in, m].
    atoms: &'a [f32],
    gram: Gram<'a>,
    /// Squared norm of every atom.
    squares: Vec<f32>,
    /// One over the norm of every atom, 0 for an atom of zeros.
    inverse_norms: Vec<f32>,
}

/// One row as a combination of atoms: `scale * sum coefficient * atom`.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowFit {
    /// Atoms and their coefficients, in the order in which they were chosen; no coefficient is 0.
    pub(crate) terms: Vec<(u32, f32)>,
    /// Scale of the row; 1 unless the scheme has row scales.
    pub(crate) scale: f32,
    /// Inner product of the row with the sum of its terms.
    pub(crate) dot: f64,
    /// Squared norm of the sum of its terms.
    pub(crate) square: f64,
}

impl RowFit {
    /// Squared error, for a row of squared norm `energy`.
    pub(crate) fn error(&self, energy: f64) -> f64 {
        let scale = f64::from(self.scale);
        (energy - 2.0 * scale * self.dot + scale * scale * self.square).max(0.0)
    }
}

/// Scratch space of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    order: Vec<u32>,
    sum: Vec<f32>,
    residual: Vec<f32>,
}

impl<'a> Fitter<'a> {
    pub(crate) fn new(select: Selection, gram: Gram<'a>, atoms: &'a [f32], d_in: usize) -> Self {
        let squares = squared_norms(atoms, d_in);
        let inverse = |s: &f32| if *s > f32::MIN_POSITIVE { s.sqrt().recip() } else { 0.0 };
        let inverse_norms = squares.iter().map(inverse).collect();
        Self { select, d_in, atoms, gram, squares, inverse_norms }
    }

    /// Fits the row whose correlations with all atoms are `y`, `[m]`. `round` is what storing does to a
    /// coefficient.
    pub(crate) fn fit(
        &self,
        y: &[f32],
        round: &dyn Fn(f64) -> f64,
        scratch: &mut Scratch,
    ) -> RowFit {
        match (self.select.scheme.has_vals(), self.select.encoder) {
            (false, Encoder::TopK) => {
                self.top_k(y, &mut scratch.order);
                self.best_prefix(y, scratch)
            }
            (true, Encoder::TopK) => {
                self.top_k(y, &mut scratch.order);
                self.least_squares(y, round, &scratch.order)
            }
            (false, Encoder::Omp) => self.sign_pursuit(y, scratch),
            (true, Encoder::Omp) => self.matching_pursuit(y, round, scratch),
        }
    }

    fn atom(&self, i: usize) -> &[f32] {
        &self.atoms[i * self.d_in..(i + 1) * self.d_in]
    }

    /// The k atoms with the largest |correlation|, largest first, lower index first among equals.
    pub(crate) fn top_k(&self, y: &[f32], order: &mut Vec<u32>) {
        let score = |i: u32| y[i as usize].abs();
        let compare = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
        order.clear();
        order.extend(0..y.len() as u32);
        let k = self.select.k;
        if k < order.len() {
            order.select_nth_unstable_by(k - 1, compare);
            order.truncate(k);
        }
        order.sort_unstable_by(compare);
        let used = order.iter().take_while(|i| score(**i) > 0.0).count();
        order.truncate(used);
    }

    /// Merit of a sum of signed atoms v: how much of the squared error it removes.
    fn merit(&self, dot: f64, square: f64) -> f64 {
        if self.select.scheme.has_row_scale() {
            if square > 0.0 && dot > 0.0 { dot * dot / square } else { 0.0 }
        } else {
            2.0 * dot - square
        }
    }

    /// Signs of the correlations on the best prefix of `scratch.order`.
    fn best_prefix(&self, y: &[f32], scratch: &mut Scratch) -> RowFit {
        scratch.sum.clear();
        scratch.sum.resize(self.d_in, 0.0);
        let mut path = SignPath::default();
        for &i in &scratch.order {
            let i = i as usize;
            let sign = y[i].signum();
            let with_sum = dot(self.atom(i), &scratch.sum);
            path.push(self, (i, sign), y[i], with_sum);
            add_scaled(&mut scratch.sum, sign, self.atom(i));
        }
        path.finish(self)
    }

    /// Greedy choice of signed atoms, each the one after which the best scale (`sign+row_scale`) or no
    /// scale (`sign`) leaves the least error: matching pursuit among sums of signs.
    fn sign_pursuit(&self, y: &[f32], scratch: &mut Scratch) -> RowFit {
        let with_sum = &mut scratch.residual;
        with_sum.clear();
        with_sum.resize(y.len(), 0.0);
        let mut path = SignPath::default();
        for _ in 0..self.select.k {
            let Some((i, sign)) = self.best_signed_atom(y, with_sum, &path) else { break };
            path.push(self, (i, sign), y[i], with_sum[i]);
            self.gram.add_column(i, sign, with_sum);
        }
        path.finish(self)
    }

    /// The open atom and sign with the largest merit after adding it. That may be less than before: several
    /// signs together can fit where each alone is too long.
    fn best_signed_atom(
        &self,
        y: &[f32],
        with_sum: &[f32],
        path: &SignPath,
    ) -> Option<(usize, f32)> {
        let mut best = (f64::NEG_INFINITY, None);
        for i in 0..y.len() {
            if self.inverse_norms[i] == 0.0 || path.terms.iter().any(|t| t.0 as usize == i) {
                continue;
            }
            for sign in [1.0f32, -1.0] {
                let (dot, square) = path.after(self, (i, sign), y[i], with_sum[i]);
                let merit = self.merit(dot, square);
                if merit > best.0 {
                    best = (merit, Some((i, sign)));
                }
            }
        }
        best.1
    }

    /// Least-squares coefficients on the atoms of `order`; nearly dependent ones are left out.
    fn least_squares(&self, y: &[f32], round: &dyn Fn(f64) -> f64, order: &[u32]) -> RowFit {
        let mut support = Vec::with_capacity(order.len());
        let mut cholesky = GrowingCholesky::with_capacity(order.len());
        for &i in order {
            self.try_add(i as usize, y, &mut support, &mut cholesky);
        }
        self.with_coefficients(&support, &cholesky.solve(round), y)
    }

    fn try_add(
        &self,
        i: usize,
        y: &[f32],
        support: &mut Vec<usize>,
        cholesky: &mut GrowingCholesky,
    ) -> bool {
        let gram = support.iter().map(|&j| self.gram.get(i, j));
        let accepted = cholesky.push(gram, self.squares[i], y[i]);
        if accepted {
            support.push(i);
        }
        accepted
    }

    /// Orthogonal matching pursuit: the atom with the largest correlation with what is left, then all
    /// coefficients anew.
    fn matching_pursuit(
        &self,
        y: &[f32],
        round: &dyn Fn(f64) -> f64,
        scratch: &mut Scratch,
    ) -> RowFit {
        let mut support = Vec::with_capacity(self.select.k);
        let mut cholesky = GrowingCholesky::with_capacity(self.select.k);
        let residual = &mut scratch.residual;
        residual.clear();
        residual.extend_from_slice(y);
        // an atom once refused or taken stays out
        let mut open: Vec<bool> = self.inverse_norms.iter().map(|n| *n > 0.0).collect();
        while support.len() < self.select.k {
            let score = |i: usize| (residual[i] * self.inverse_norms[i]).abs();
            let mut best = (0.0, None);
            for i in (0..y.len()).filter(|&i| open[i]) {
                if score(i) > best.0 {
                    best = (score(i), Some(i));
                }
            }
            let Some(i) = best.1 else { break };
            open[i] = false;
            if self.try_add(i, y, &mut support, &mut cholesky) {
                residual.copy_from_slice(y);
                for (&j, c) in support.iter().zip(cholesky.solve(|c| c)) {
                    self.gram.add_column(j, -c as f32, residual);
                }
            }
        }
        self.with_coefficients(&support, &cholesky.solve(round), y)
    }

    fn with_coefficients(&self, support: &[usize], coefficients: &[f64], y: &[f32]) -> RowFit {
        let mut fit = RowFit { scale: 1.0, ..RowFit::default() };
        for (n, (&i, &c)) in support.iter().zip(coefficients).enumerate() {
            fit.dot += c * f64::from(y[i]);
            fit.square += c * c * f64::from(self.squares[i]);
            for (&j, &b) in support[..n].iter().zip(coefficients) {
                fit.square += 2.0 * c * b * f64::from(self.gram.get(i, j));
            }
            if c != 0.0 {
                fit.terms.push((i as u32, c as f32));
            }
        }
        fit
    }
}

/// A growing sum of signed atoms and the best prefix seen so far.
#[derive(Default)]
struct SignPath {
    terms: Vec<(u32, f32)>,
    dot: f64,
    square: f64,
    best: f64,
    best_at: (usize, f64, f64),
}

impl SignPath {
    /// Inner product with the row and squared norm after adding `sign * atom i`.
    fn after(&self, fitter: &Fitter, (i, sign): (usize, f32), y: f32, with_sum: f32) -> (f64, f64) {
        let cross = 2.0 * f64::from(sign * with_sum);
        (self.dot + f64::from(sign * y), self.square + cross + f64::from(fitter.squares[i]))
    }

    fn push(&mut self, fitter: &Fitter, term: (usize, f32), y: f32, with_sum: f32) {
        (self.dot, self.square) = self.after(fitter, term, y, with_sum);
        self.terms.push((term.0 as u32, term.1));
        let merit = fitter.merit(self.dot, self.square);
        if merit > self.best {
            self.best = merit;
            self.best_at = (self.terms.len(), self.dot, self.square);
        }
    }

    fn finish(mut self, fitter: &Fitter) -> RowFit {
        let (n, dot, square) = self.best_at;
        self.terms.truncate(n);
        let scaled = fitter.select.scheme.has_row_scale();
        let scale = if !scaled {
            1.0
        } else if n > 0 {
            (dot / square) as f32
        } else {
            0.0
        };
        RowFit { terms: self.terms, scale, dot, square }
    }
}
