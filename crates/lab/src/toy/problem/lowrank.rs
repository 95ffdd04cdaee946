//! Low-rank problems: matrices with singular values chosen beforehand.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{Maker, Prediction, Problem, SIGNAL_RANK, rounding, truncated_noise};

/// `A = sum_j s_j u_j v_j^T` with orthonormal u_j and v_j.
struct Factors {
    singular: Vec<f64>,
    /// u_j, each `[d_out]`.
    left: Vec<Vec<f64>>,
    /// v_j, each `[d_in]`.
    right: Vec<Vec<f64>>,
}

impl Maker<'_> {
    /// A3: `W = A diag(1 / sqrt(h))`, whose singular values in the metric of the inputs are those of A.
    ///
    /// Without noise they fall as 1 / j over the full rank; with noise as 2^-j over [`SIGNAL_RANK`], far
    /// from each other and from the noise, as [`truncated_noise`] asks for.
    pub(super) fn low_rank(mut self) -> Option<Problem> {
        let noisy = self.case.noise > 0.0;
        if noisy && self.case.weighted {
            return None;
        }
        let factors = self.factors(noisy);
        let root: Vec<f64> = (0..self.shape.d_in).map(|i| self.h(i).sqrt()).collect();
        let mut weights: Vec<f32> = Vec::with_capacity(self.shape.n_weights());
        for row in 0..self.shape.d_out {
            for (i, root) in root.iter().enumerate() {
                let term =
                    |j: usize| factors.singular[j] * factors.left[j][row] * factors.right[j][i];
                let sum: f64 = (0..factors.singular.len()).map(term).sum();
                weights.push((sum / root) as f32);
            }
        }
        if !self.case.has_base() {
            return Some(self.without_base(weights));
        }
        let rank = self.rank();
        let mut prediction = if noisy {
            let (m, n) = (self.shape.d_out, self.shape.d_in);
            truncated_noise(self.case.noise, (m, n), &factors.singular, rank)
        } else {
            Prediction::exact(factors.singular[rank..].iter().map(|s| s * s).sum())
        };
        if self.stored_as_f16() {
            prediction += (0..rank).map(|j| factors.rounding_of(j, &root)).sum();
        }
        self.add_noise(&mut weights);
        Some(self.problem(weights, prediction))
    }

    fn factors(&mut self, noisy: bool) -> Factors {
        let (m, n) = (self.shape.d_out, self.shape.d_in);
        let full = m.min(n);
        let rank = if noisy { full.min(SIGNAL_RANK) } else { full };
        let largest = ((m * n) as f64).sqrt();
        let decay = |j: usize| if noisy { 0.5f64.powi(j as i32) } else { 1.0 / (j + 1) as f64 };
        Factors {
            singular: (0..rank).map(|j| largest * decay(j)).collect(),
            left: orthonormal(&mut self.rng, m, rank),
            right: orthonormal(&mut self.rng, n, rank),
        }
    }
}

impl Factors {
    /// Rounding of column j of u and row j of v, as the format splits them: with t = |s v / sqrt(h)|, u is
    /// stored as `u sqrt(t)` and v as `s v / sqrt(h) / sqrt(t)`.
    fn rounding_of(&self, j: usize, root: &[f64]) -> Prediction {
        let row: Vec<f64> =
            self.right[j].iter().zip(root).map(|(v, root)| self.singular[j] * v / root).collect();
        let t = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        // an error in u counts with the weighted energy of the stored v, and the other way round
        let u_weight = self.singular[j].powi(2) / t;
        let of_u = self.left[j].iter().map(|u| rounding(u * t.sqrt(), 0.0, u_weight));
        let of_v =
            row.iter().zip(root).map(|(v, root)| rounding(v / t.sqrt(), 0.0, t * root * root));
        of_u.chain(of_v).sum()
    }
}

/// `count` random orthonormal vectors of length `len` (Gram and Schmidt, twice for accuracy).
fn orthonormal(rng: &mut ChaCha8Rng, len: usize, count: usize) -> Vec<Vec<f64>> {
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    for _ in 0..count {
        let mut v: Vec<f64> = (0..len).map(|_| StandardNormal.sample(rng)).collect();
        for _ in 0..2 {
            for u in &vectors {
                let dot: f64 = u.iter().zip(&v).map(|(u, v)| u * v).sum();
                v.iter_mut().zip(u).for_each(|(v, u)| *v -= dot * u);
            }
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            v.iter_mut().for_each(|v| *v /= norm);
        }
        vectors.push(v);
    }
    vectors
}
