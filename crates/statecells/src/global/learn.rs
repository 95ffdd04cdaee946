//! Learning the atoms: Oja's rule on the winners of a k-WTA competition.
//!
//! For a row w with correlations y = D^T w, each of the k winners j moves by
//! `d_j += eta * y_j * (w - y_j * d_j - lambda * sum_{l != j} y_l d_l)` over the winners l and is
//! normalized. With lambda = 0 that is Oja's rule (J. Math. Biology 15, 1982) for each winner alone;
//! lambda > 0 is the lateral, anti-Hebbian decorrelation between winners (Foldiak, Biol. Cybernetics 64,
//! 1990), here in the form that gives Oja's subspace rule (Int. J. Neural Systems 1, 1989) at lambda = 1.

use codec::EncodeContext;
use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::GlobalParams;
use super::fit::{Fitter, Scratch};
use super::gram::Gram;
use crate::linalg::{add_scaled, dot, normalize};
use crate::metric::Metric;
use crate::{Encoder, Scheme};

/// Rows per product and per update of the atoms.
pub(crate) const BATCH: usize = 64;

/// The rows that are learned from.
struct Samples<'a> {
    weights: &'a [f32],
    d_in: usize,
    metric: &'a Metric,
    /// Row numbers, ascending.
    rows: Vec<usize>,
}

impl Samples<'_> {
    /// Scaled rows `rows`, [d_in, rows.len()].
    fn gather(&self, rows: &[usize], out: &mut Vec<f32>) {
        out.resize(rows.len() * self.d_in, 0.0);
        for (out, &r) in out.chunks_exact_mut(self.d_in).zip(rows) {
            self.metric.scale(&self.weights[r * self.d_in..(r + 1) * self.d_in], out);
        }
    }
}

/// Learns unit-norm atoms, [d_in, m], in the scaled space. Atoms that no row needs are zero.
pub(crate) fn learn(
    params: &GlobalParams,
    weights: &[f32],
    (d_in, m): (usize, usize),
    metric: &Metric,
    context: &EncodeContext<'_>,
) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
    let rows = sample_rows(weights, d_in, params.max_samples, &mut rng);
    let samples = Samples { weights, d_in, metric, rows };
    let mut atoms = seed_atoms(&samples, m, &mut rng);
    let mut best = (f64::INFINITY, Vec::new());
    context.progress.stage("learn", params.iters as u64 + 1);
    for pass in 0..=params.iters {
        let first = pass == 0;
        let wins = if first {
            vec![1; m]
        } else {
            oja_pass(params, &samples, &mut atoms, context, &mut rng)
        };
        let errors = row_errors(params, &samples, &atoms, context);
        let total: f64 = errors.iter().sum();
        if total < best.0 {
            best = (total, atoms.clone());
        }
        reseed_dead(&samples, &wins, &errors, &mut atoms);
        context.progress.advance(1);
    }
    best.1
}

/// Up to `max` rows that are not all zeros, ascending.
fn sample_rows(weights: &[f32], d_in: usize, max: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let used: Vec<usize> = (0..weights.len() / d_in)
        .filter(|r| weights[r * d_in..(r + 1) * d_in].iter().any(|w| *w != 0.0))
        .collect();
    let mut rows: Vec<usize> =
        index::sample(rng, used.len(), max.min(used.len())).iter().map(|i| used[i]).collect();
    rows.sort_unstable();
    rows
}

/// Atoms start as sampled rows; with fewer rows than atoms the rest stays zero until it is needed.
fn seed_atoms(samples: &Samples, m: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let n = m.min(samples.rows.len());
    let picked: Vec<usize> =
        index::sample(rng, samples.rows.len(), n).iter().map(|i| samples.rows[i]).collect();
    let mut atoms = Vec::new();
    samples.gather(&picked, &mut atoms);
    atoms.chunks_exact_mut(samples.d_in).for_each(|a| {
        normalize(a);
    });
    atoms.resize(m * samples.d_in, 0.0);
    atoms
}

/// What an atom won in a batch: (row of the batch, correlation).
type Wins = Vec<(usize, f32)>;

/// One pass of Oja's rule over all samples in random order; returns how often each atom won.
fn oja_pass(
    params: &GlobalParams,
    samples: &Samples,
    atoms: &mut [f32],
    context: &EncodeContext<'_>,
    rng: &mut ChaCha8Rng,
) -> Vec<u32> {
    let d_in = samples.d_in;
    let m = atoms.len() / d_in;
    let mut order = samples.rows.clone();
    order.shuffle(rng);
    let mut n_wins = vec![0u32; m];
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for batch in order.chunks(BATCH) {
        samples.gather(batch, &mut x);
        y.resize(batch.len() * m, 0.0);
        context.mul_mat.mul_mat(atoms, &x, d_in, &mut y);
        let winners = winners(params.k, atoms, d_in, &y);
        let lateral = lateral_sums(params.anti_hebb, atoms, d_in, &winners);
        let mut by_atom: Vec<Wins> = vec![Wins::new(); m];
        for (row, winners) in winners.iter().enumerate() {
            for &(atom, y) in winners {
                by_atom[atom].push((row, y));
                n_wins[atom] += 1;
            }
        }
        let step = Step { eta: params.eta, anti_hebb: params.anti_hebb, x: &x, lateral: &lateral };
        atoms
            .par_chunks_exact_mut(d_in)
            .zip(&by_atom)
            .for_each(|(atom, wins)| step.update(atom, wins));
    }
    n_wins
}

/// The k winners of every row of a batch with their correlations.
fn winners(k: usize, atoms: &[f32], d_in: usize, y: &[f32]) -> Vec<Vec<(usize, f32)>> {
    let select = (Scheme::Sign, Encoder::TopK, k);
    let fitter = Fitter::new(select, Gram::lazy(atoms, d_in), atoms, d_in);
    let pick = |order: &mut Vec<u32>, y: &[f32]| {
        fitter.top_k(y, order);
        order.iter().map(|&i| (i as usize, y[i as usize])).collect()
    };
    y.par_chunks_exact(atoms.len() / d_in).map_init(Vec::new, pick).collect()
}

/// Sum of `y_l d_l` over the winners of every row, if the lateral term is on.
fn lateral_sums(anti_hebb: f32, atoms: &[f32], d_in: usize, winners: &[Wins]) -> Vec<f32> {
    if anti_hebb == 0.0 {
        return Vec::new();
    }
    let mut sums = vec![0.0; winners.len() * d_in];
    sums.par_chunks_exact_mut(d_in).zip(winners).for_each(|(sum, winners)| {
        for &(atom, y) in winners {
            add_scaled(sum, y, &atoms[atom * d_in..(atom + 1) * d_in]);
        }
    });
    sums
}

/// One update of the atoms.
struct Step<'a> {
    eta: f32,
    anti_hebb: f32,
    /// Rows of the batch, [d_in, n].
    x: &'a [f32],
    /// Their lateral sums, [d_in, n], or empty.
    lateral: &'a [f32],
}

impl Step<'_> {
    fn update(&self, atom: &mut [f32], wins: &[(usize, f32)]) {
        if wins.is_empty() {
            return;
        }
        let d = atom.len();
        let squares: f32 = wins.iter().map(|(_, y)| y * y).sum();
        // own share of the lateral sum is added back: the sum runs over the other winners
        let decay = self.eta * (1.0 - self.anti_hebb) * squares;
        let old = atom.to_vec();
        // a batch may ask for more than the whole way; an atom never turns round because of that
        atom.iter_mut().for_each(|a| *a *= (1.0 - decay).max(0.0));
        for &(row, y) in wins {
            add_scaled(atom, self.eta * y, &self.x[row * d..(row + 1) * d]);
            if !self.lateral.is_empty() {
                let factor = -self.eta * self.anti_hebb * y;
                add_scaled(atom, factor, &self.lateral[row * d..(row + 1) * d]);
            }
        }
        if !normalize(atom) {
            atom.copy_from_slice(&old);
        }
    }
}

/// Squared error of every sample under the scheme's own fit.
fn row_errors(
    params: &GlobalParams,
    samples: &Samples,
    atoms: &[f32],
    context: &EncodeContext<'_>,
) -> Vec<f64> {
    let d_in = samples.d_in;
    let m = atoms.len() / d_in;
    // a row scale stands in for the common norm that `sign` gives its atoms only in the end
    let scheme = if params.scheme.has_vals() { params.scheme } else { Scheme::SignRowScale };
    let select = (scheme, Encoder::TopK, params.k);
    let fitter = Fitter::new(select, Gram::lazy(atoms, d_in), atoms, d_in);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let mut errors = Vec::with_capacity(samples.rows.len());
    for batch in samples.rows.chunks(BATCH) {
        samples.gather(batch, &mut x);
        y.resize(batch.len() * m, 0.0);
        context.mul_mat.mul_mat(atoms, &x, d_in, &mut y);
        let fit = |scratch: &mut Scratch, (x, y): (&[f32], &[f32])| {
            fitter.fit(y, &|c| c, scratch).error(f64::from(dot(x, x)))
        };
        errors.par_extend(
            x.par_chunks_exact(d_in).zip(y.par_chunks_exact(m)).map_init(Scratch::default, fit),
        );
    }
    errors
}

/// Gives atoms that never won the rows that are coded worst, each row to one atom.
fn reseed_dead(samples: &Samples, wins: &[u32], errors: &[f64], atoms: &mut [f32]) {
    let mut worst: Vec<usize> = (0..errors.len()).collect();
    worst.sort_by(|&a, &b| errors[b].total_cmp(&errors[a]).then(a.cmp(&b)));
    let mut worst = worst.into_iter().filter(|&i| errors[i] > 0.0);
    let mut x = Vec::new();
    for (atom, _) in atoms.chunks_exact_mut(samples.d_in).zip(wins).filter(|(_, n)| **n == 0) {
        let Some(row) = worst.next() else { break };
        samples.gather(&[samples.rows[row]], &mut x);
        atom.copy_from_slice(&x);
        normalize(atom);
    }
}
