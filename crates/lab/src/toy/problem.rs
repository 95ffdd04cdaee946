//! Makes a case's matrix and predicts its error from how it was made.

use format::MatrixShape;
use format::seeddelta::{BaseType, PartSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::toy::plan::{Case, Family, SIGNAL_RANK, block_size};
use crate::toy::theory::{Prediction, noise, rounding, shared_parameter, trimmed, truncated_noise};

mod lowrank;

/// A matrix, its inputs and the predicted error of its code.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The matrix, [d_in, d_out].
    pub weights: Vec<f32>,
    /// Mean squares of the inputs, `[d_in]`, if they are not all 1.
    pub importance: Option<Vec<f32>>,
    /// What the error should be.
    pub prediction: Prediction,
}

/// The problem of `case`; `None` if there is no closed form for it.
///
/// No closed form: weighted low rank with noise (the noise is not white in the metric of the singular
/// values); identity plus delta with noise and weights, or without a base (order statistics of unequal
/// variances), unless the delta takes exactly the structured weights.
#[must_use]
pub fn make(case: &Case, seed: u64) -> Option<Problem> {
    let mut maker = Maker::new(case, seed);
    match (case.family, case.has_base()) {
        (_, false) if case.noise > 0.0 => maker.structure_found_by_delta(),
        (Family::A3, _) => maker.low_rank(),
        (_, false) => {
            let weights = maker.clean();
            Some(maker.without_base(weights))
        }
        (Family::A5, true) if case.noise > 0.0 => maker.identity_with_noise_and_delta(),
        (Family::A5, true) => Some(maker.identity_with_delta()),
        _ => Some(maker.linear_base()),
    }
}

/// What all problems start from.
struct Maker<'a> {
    case: &'a Case,
    shape: MatrixShape,
    rng: ChaCha8Rng,
    importance: Option<Vec<f32>>,
}

impl<'a> Maker<'a> {
    /// The same matrix for all codecs of a case's family, shape, repetition, noise and inputs.
    fn new(case: &'a Case, seed: u64) -> Self {
        let shape = case.shape;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let key = format!(
            "{:?} {shape} {} {} {} {}",
            case.family,
            case.repeat,
            case.noise,
            case.weighted,
            case.has_base()
        );
        rng.set_stream(fnv1a(&key));
        let log_range = -std::f32::consts::LN_2..std::f32::consts::LN_2;
        let importance = case
            .weighted
            .then(|| (0..shape.d_in).map(|_| rng.random_range(log_range.clone()).exp()).collect());
        Self { case, shape, rng, importance }
    }

    fn h(&self, column: usize) -> f64 {
        self.importance.as_ref().map_or(1.0, |h| f64::from(h[column]))
    }

    fn stored_as_f16(&self) -> bool {
        self.case.codec.base_type == BaseType::F16
    }

    /// Sign times a number from 1 to 2.
    fn about_one(&mut self) -> f32 {
        let magnitude = self.rng.random_range(1.0f32..2.0);
        if self.rng.random() { magnitude } else { -magnitude }
    }

    fn add_noise(&mut self, weights: &mut [f32]) {
        if self.case.noise > 0.0 {
            for w in weights {
                let z: f64 = StandardNormal.sample(&mut self.rng);
                *w = (f64::from(*w) + self.case.noise * z) as f32;
            }
        }
    }

    fn problem(self, weights: Vec<f32>, prediction: Prediction) -> Problem {
        Problem { weights, importance: self.importance, prediction }
    }

    /// The parameter that each entry of the family's base depends on, [d_in, d_out]; `None` where it is 0.
    fn parameters(&self) -> Vec<Option<usize>> {
        let MatrixShape { d_in, d_out } = self.shape;
        let n = d_in.max(d_out);
        let size = match self.case.family {
            Family::A4 => {
                return (0..d_in * d_out).map(|p| Some((p / d_in + n - p % d_in) % n)).collect();
            }
            Family::A6 => block_size(self.shape),
            _ => 1,
        };
        let (n_in, n_out) = (d_in.div_ceil(size), d_out.div_ceil(size));
        let block = |t: usize, end: usize| t * size..(t * size + size).min(end);
        let mut parameters = vec![None; d_in * d_out];
        // tile t joins input block t mod n_in with output block t mod n_out
        for t in 0..n_in.max(n_out) {
            for row in block(t % n_out, d_out) {
                for column in block(t % n_in, d_in) {
                    let position = row * d_in + column;
                    let shared = matches!(self.case.family, Family::A1 | Family::A5);
                    parameters[position] = Some(if shared { 0 } else { position });
                }
            }
        }
        parameters
    }

    /// A member of the family's base with parameters of about 1, and for A5 the weights beside it.
    fn clean(&mut self) -> Vec<f32> {
        let parameters = self.parameters();
        let values: Vec<f32> = parameters.iter().map(|_| self.about_one()).collect();
        let mut weights: Vec<f32> =
            parameters.iter().map(|p| p.map_or(0.0, |p| values[p % values.len()])).collect();
        if self.case.family == Family::A5 && self.case.noise == 0.0 {
            // three orders of magnitude, so that every K leaves a different error
            for w in &mut weights {
                *w += self.about_one() * 10f32.powf(self.rng.random_range(-3.0f32..0.0));
            }
        }
        weights
    }

    /// A1, A2, A4, A6: base and noise.
    fn linear_base(mut self) -> Problem {
        let mut weights = self.clean();
        let mut entries_of = vec![Vec::new(); self.shape.n_weights()];
        let mut free = Vec::new();
        for (position, parameter) in self.parameters().into_iter().enumerate() {
            let h = self.h(position % self.shape.d_in);
            match parameter {
                Some(p) => entries_of[p].push((weights[position], h)),
                None => free.push(h),
            }
        }
        let mut prediction = noise(self.case.noise, free.into_iter());
        for entries in entries_of.iter().filter(|entries| !entries.is_empty()) {
            let h: Vec<f64> = entries.iter().map(|&(_, h)| h).collect();
            prediction += shared_parameter(self.case.noise, &h);
            if self.stored_as_f16() {
                // the parameter is the weighted mean of its entries: so much noise is left in it
                let total: f64 = h.iter().sum();
                let sigma = self.case.noise * h.iter().map(|h| h * h).sum::<f64>().sqrt() / total;
                prediction += rounding(f64::from(entries[0].0), sigma, total);
            }
        }
        self.add_noise(&mut weights);
        self.problem(weights, prediction)
    }

    /// No noise, no base: the sum of the weights that the delta leaves out.
    fn without_base(self, weights: Vec<f32>) -> Problem {
        let residual: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        let (left, prediction) = self.left_out(&residual);
        let energy: f64 = left.iter().map(|&p| self.energy_at(&residual, p)).sum();
        self.problem(weights, prediction + Prediction::exact(energy))
    }

    fn energy_at(&self, residual: &[f64], position: usize) -> f64 {
        self.h(position % self.shape.d_in) * residual[position].powi(2)
    }

    /// Positions that a delta of K per row leaves out, and the rounding of those it keeps.
    fn left_out(&self, residual: &[f64]) -> (Vec<usize>, Prediction) {
        let d_in = self.shape.d_in;
        let mut left = Vec::new();
        let mut kept = Vec::new();
        for row in 0..self.shape.d_out {
            let mut order: Vec<usize> = (row * d_in..(row + 1) * d_in).collect();
            let cost = |&p: &usize| self.energy_at(residual, p);
            order.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
            left.extend(order.split_off(self.case.delta_k()));
            kept.extend(order.into_iter().map(|p| (residual[p].abs(), self.h(p % d_in))));
        }
        (left, stored(kept))
    }

    /// A5 without noise: the identity takes the weighted mean m of its tiles, the delta the largest of
    /// what is left. F16 shifts the tiles by one rounding error e: the part left out then has the energy
    /// `sum h (r - e)^2`.
    fn identity_with_delta(mut self) -> Problem {
        let weights = self.clean();
        let parameters = self.parameters();
        let tiles: Vec<usize> = (0..weights.len()).filter(|&p| parameters[p].is_some()).collect();
        let h = |p: usize| self.h(p % self.shape.d_in);
        let total: f64 = tiles.iter().map(|&p| h(p)).sum();
        let mean = tiles.iter().map(|&p| h(p) * f64::from(weights[p])).sum::<f64>() / total;
        let mut residual: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        tiles.iter().for_each(|&p| residual[p] -= mean);
        let (left, mut prediction) = self.left_out(&residual);
        prediction.energy += left.iter().map(|&p| self.energy_at(&residual, p)).sum::<f64>();
        if self.stored_as_f16() {
            let on_tile: Vec<usize> =
                left.into_iter().filter(|p| tiles.binary_search(p).is_ok()).collect();
            let weight = on_tile.iter().map(|&p| h(p)).sum();
            let pull: f64 = on_tile.iter().map(|&p| h(p) * residual[p]).sum();
            prediction += rounding(mean, 0.0, weight);
            prediction.variance += 4.0 * pull * pull * rounding(mean, 0.0, 1.0).energy;
        }
        self.problem(weights, prediction)
    }

    /// A5 with noise: identity and noise only; the delta trims each row of the noise.
    ///
    /// The one parameter of the identity takes one degree of freedom of d_in d_out.
    fn identity_with_noise_and_delta(mut self) -> Option<Problem> {
        let (n, k) = (self.shape.d_in, self.case.delta_k());
        if self.case.weighted || k >= n {
            return None;
        }
        let mut weights = self.clean();
        self.add_noise(&mut weights);
        let (rows, total) = (self.shape.d_out as f64, self.shape.n_weights() as f64);
        let row = trimmed(n, k);
        let s2 = self.case.noise.powi(2);
        let prediction = Prediction {
            energy: rows * s2 * row.energy * (total - 1.0) / total,
            variance: rows * s2 * s2 * row.variance,
        };
        Some(self.problem(weights, prediction))
    }

    /// Noise and no base: the delta finds the structured weights of each row, which the noise cannot
    /// reach, and where there are fewer than K trims the noise by the rest.
    fn structure_found_by_delta(mut self) -> Option<Problem> {
        let (d_in, k) = (self.shape.d_in, self.case.delta_k());
        let mut weights = match self.case.family {
            Family::A3 => self.one_flat_block(),
            Family::A4 => self.few_taps(),
            _ => self.clean(),
        };
        let mut prediction = Prediction::default();
        let mut kept = Vec::new();
        for row in weights.chunks(d_in) {
            let structured = row.iter().filter(|&&w| w != 0.0).count();
            let free = || row.iter().zip(0..).filter(|(w, _)| **w == 0.0).map(|(_, i)| self.h(i));
            if structured == k {
                prediction += noise(self.case.noise, free());
            } else if self.case.weighted {
                return None;
            } else {
                let rest = trimmed(d_in - structured, k - structured);
                let s2 = self.case.noise.powi(2);
                prediction.energy += s2 * rest.energy;
                prediction.variance += s2 * s2 * rest.variance;
            }
            let nonzero = row.iter().zip(0..).filter(|(w, _)| **w != 0.0);
            kept.extend(nonzero.map(|(w, i)| (f64::from(w.abs()), self.h(i))));
        }
        // noise makes equal weights unequal, so each has a rounding error of its own
        prediction += kept.into_iter().map(|(value, h)| rounding(value, self.case.noise, h)).sum();
        self.add_noise(&mut weights);
        Some(self.problem(weights, prediction))
    }

    /// A circulant with at most [`SIGNAL_RANK`] values that are not 0.
    fn few_taps(&mut self) -> Vec<f32> {
        let n = self.shape.d_in.max(self.shape.d_out);
        let mut column = vec![0.0; n];
        for tap in [0, 1, n / 3, n / 2] {
            column[tap.min(n - 1)] = self.about_one();
        }
        self.parameters().iter().map(|p| p.map_or(0.0, |p| column[p])).collect()
    }

    /// Rank 1, not 0 in the first [`SIGNAL_RANK`] inputs of the upper half of the rows.
    fn one_flat_block(&mut self) -> Vec<f32> {
        let MatrixShape { d_in, d_out } = self.shape;
        let scale = self.about_one();
        let mut weights = vec![0.0; d_in * d_out];
        for row in 0..d_out.div_ceil(2) {
            let sign: f32 = if self.rng.random() { scale } else { -scale };
            weights[row * d_in..][..SIGNAL_RANK.min(d_in)].fill(sign);
        }
        weights
    }

    fn rank(&self) -> usize {
        match self.case.codec.base.parts() {
            [PartSpec::LowRank { rank }] => *rank,
            _ => 0,
        }
    }
}

/// Rounding of stored values (|value|, h): equal values share one rounding error.
fn stored(mut values: Vec<(f64, f64)>) -> Prediction {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let groups = values.chunk_by(|a, b| a.0 == b.0);
    groups.map(|g| rounding(g[0].0, 0.0, g.iter().map(|&(_, h)| h).sum())).sum()
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
