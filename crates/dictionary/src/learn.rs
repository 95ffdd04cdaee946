//! Learning the atoms: sampled rows, Oja's rule on k-WTA winners, then alternating refits.
//!
//! Every dictionary on the way is measured on the samples with the scheme's own fit, and the best one is
//! kept: streaming steps and refits with changing codes are not monotone.

use numerics::EncodeContext;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::fit::RowFit;
use super::samples::Samples;
use super::selection::Selection;
use super::{GlobalParams, oja, refit};
use crate::Encoder;
use crate::metric::{Metric, squared_norms};
use format::Scheme;
use numerics::linalg::normalize;

/// A dictionary in the making.
struct Learner<'a> {
    params: &'a GlobalParams,
    samples: Samples<'a>,
    context: &'a EncodeContext<'a>,
    /// Current atoms, [d_in, m].
    atoms: Vec<f32>,
    /// The best atoms so far and their error.
    best: (f64, Vec<f32>),
}

/// Learns atoms, [d_in, m], in the scaled space; those that no row needs may be zero. Their norms relative
/// to each other matter where no coefficient makes up for them.
pub(crate) fn learn(
    params: &GlobalParams,
    weights: &[f32],
    m: usize,
    metric: &Metric,
    context: &EncodeContext<'_>,
) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
    let samples = Samples::draw(weights, metric, params.max_samples, &mut rng);
    let atoms = seed_atoms(&samples, m, &mut rng);
    let best = (f64::INFINITY, atoms.clone());
    let mut learner = Learner { params, samples, context, atoms, best };
    context.progress.stage("learn", (params.iters + params.refine) as u64);
    // unit atoms need some factor to be compared; for `sign` a row scale stands in
    let stand_in = if params.scheme.has_vals() { params.scheme } else { Scheme::SignRowScale };
    let mut fits = learner.measure(stand_in).0;
    for _ in 0..params.iters {
        let wins = oja::pass(params, &learner.samples, &mut learner.atoms, context, &mut rng);
        let (new_fits, errors) = learner.measure(stand_in);
        learner.reseed_dead(&wins, &errors);
        fits = new_fits;
        context.progress.advance(1);
    }
    if params.refine > 0 {
        learner.refine(fits);
    }
    learner.best.1
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

impl Learner<'_> {
    /// Fits the samples with the current atoms and remembers these if they are the best so far.
    fn measure(&mut self, scheme: Scheme) -> (Vec<RowFit>, Vec<f64>) {
        let select = Selection { scheme, encoder: Encoder::TopK, k: self.params.k };
        let (fits, errors) = self.samples.fit(select, &self.atoms, self.context);
        let total: f64 = errors.iter().sum();
        if total < self.best.0 {
            self.best = (total, self.atoms.clone());
        }
        (fits, errors)
    }

    /// Refits the atoms and chooses the codes anew, in turn.
    fn refine(&mut self, mut fits: Vec<RowFit>) {
        let scheme = self.params.scheme;
        if scheme == Scheme::Sign {
            fits = self.drop_scales(&fits);
        }
        for _ in 0..self.params.refine {
            let uses = refit::refit(&self.samples, &fits, &mut self.atoms);
            if scheme.has_vals() {
                self.atoms.chunks_exact_mut(self.samples.d_in).for_each(|a| {
                    normalize(a);
                });
            }
            let (new_fits, errors) = self.measure(scheme);
            self.reseed_dead(&uses, &errors);
            fits = new_fits;
            self.context.progress.advance(1);
        }
    }

    /// Gives the atoms the norm that makes up for row scales on average, and fits without these.
    fn drop_scales(&mut self, fits: &[RowFit]) -> Vec<RowFit> {
        let dot: f64 = fits.iter().map(|f| f.dot).sum();
        let square: f64 = fits.iter().map(|f| f.square).sum();
        if dot > 0.0 && square > 0.0 {
            let gain = (dot / square) as f32;
            self.atoms.iter_mut().for_each(|a| *a *= gain);
        }
        // errors without scales are not comparable with those before
        self.best.0 = f64::INFINITY;
        self.measure(Scheme::Sign).0
    }

    /// Gives atoms that never won the rows that are coded worst, each row to one atom.
    fn reseed_dead(&mut self, wins: &[u32], errors: &[f64]) {
        let mut worst: Vec<usize> = (0..errors.len()).filter(|&i| errors[i] > 0.0).collect();
        worst.sort_by(|&a, &b| errors[b].total_cmp(&errors[a]).then(a.cmp(&b)));
        let mut worst = worst.into_iter();
        let mut x = Vec::new();
        let norm = mean_norm(&self.atoms, self.samples.d_in);
        let atoms = self.atoms.chunks_exact_mut(self.samples.d_in);
        for (atom, _) in atoms.zip(wins).filter(|(_, n)| **n == 0) {
            let Some(sample) = worst.next() else { break };
            self.samples.gather(&[self.samples.rows[sample]], &mut x);
            atom.copy_from_slice(&x);
            normalize(atom);
            atom.iter_mut().for_each(|a| *a *= norm);
        }
    }
}

/// Root mean square norm of the atoms that are not zero; 1 if all are.
fn mean_norm(atoms: &[f32], d_in: usize) -> f32 {
    let squares = squared_norms(atoms, d_in);
    let used = squares.iter().filter(|s| **s > 0.0).count();
    let sum: f64 = squares.iter().map(|s| f64::from(*s)).sum();
    if used > 0 { (sum / used as f64).sqrt() as f32 } else { 1.0 }
}
