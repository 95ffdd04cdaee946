//! The rows a dictionary is learned from, and how well it fits them.

use numerics::EncodeContext;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::fit::{Fitter, RowFit, Scratch};
use super::gram::Gram;
use crate::metric::Metric;
use numerics::linalg::dot;

/// Rows per product and per update of the atoms.
pub(crate) const BATCH: usize = 64;

/// The rows that are learned from.
pub(crate) struct Samples<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) d_in: usize,
    pub(crate) metric: &'a Metric,
    /// Row numbers, ascending; no row is all zeros.
    pub(crate) rows: Vec<usize>,
}

impl<'a> Samples<'a> {
    /// Up to `max` rows of `weights` that are not all zeros.
    pub(crate) fn draw(
        weights: &'a [f32],
        metric: &'a Metric,
        max: usize,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let d_in = metric.factors.len();
        let used: Vec<usize> = (0..weights.len() / d_in)
            .filter(|r| weights[r * d_in..(r + 1) * d_in].iter().any(|w| *w != 0.0))
            .collect();
        let picked = index::sample(rng, used.len(), max.min(used.len()));
        let mut rows: Vec<usize> = picked.iter().map(|i| used[i]).collect();
        rows.sort_unstable();
        Self { weights, d_in, metric, rows }
    }

    /// Scaled rows `rows`, [d_in, rows.len()].
    pub(crate) fn gather(&self, rows: &[usize], out: &mut Vec<f32>) {
        out.resize(rows.len() * self.d_in, 0.0);
        for (out, &r) in out.chunks_exact_mut(self.d_in).zip(rows) {
            self.metric.scale(&self.weights[r * self.d_in..(r + 1) * self.d_in], out);
        }
    }

    /// Fits every sample and returns the fits with their squared errors, in the order of `rows`.
    pub(crate) fn fit(
        &self,
        select: super::selection::Selection,
        atoms: &[f32],
        context: &EncodeContext<'_>,
    ) -> (Vec<RowFit>, Vec<f64>) {
        let m = atoms.len() / self.d_in;
        let gram = Gram::for_rows(select, self.rows.len(), atoms, self.d_in, context.mul_mat);
        let fitter = Fitter::new(select, gram, atoms, self.d_in);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut fits = Vec::with_capacity(self.rows.len());
        for batch in self.rows.chunks(BATCH) {
            self.gather(batch, &mut x);
            y.resize(batch.len() * m, 0.0);
            context.mul_mat.mul_mat(atoms, &x, self.d_in, &mut y);
            let fit = |scratch: &mut Scratch, (x, y): (&[f32], &[f32])| {
                let fit = fitter.fit(y, &|c| c, scratch);
                let error = fit.error(f64::from(dot(x, x)));
                (fit, error)
            };
            let pairs = x.par_chunks_exact(self.d_in).zip(y.par_chunks_exact(m));
            fits.par_extend(pairs.map_init(Scratch::default, fit));
        }
        fits.into_iter().unzip()
    }
}
