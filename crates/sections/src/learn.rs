//! Learning a dictionary of sections from blocks of weights.
//!
//! Section after section on what those before leave: winner-take-all streaming first (Oja's rule where the
//! coefficient is always 1, `d += eta * (x - d)`, eta = 1 / wins), then k-means; at last all atoms jointly
//! by least squares in turn with a beam search for the winners, as in additive quantization (Babenko
//! and Lempitsky 2014; the joint step is the dictionary update of `global`'s refit, with coefficients 1).

use faer::Mat;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::beam::{Scratch, Tables, identity};
use crate::parts::{Atoms, sum_atoms};
use format::sections::{ATOMS, BLOCK};
use numerics::linalg::{cholesky, solve_with};

/// Iterations of k-means per section: the joint steps do the rest.
const KMEANS: usize = 6;
/// Beam of the joint steps.
const BEAM: usize = 8;
/// Pull towards the previous atoms, in samples: sections share a common offset that is free otherwise.
const INERTIA: f64 = 0.1;
/// Samples per task.
const CHUNK: usize = 1024;

/// Learns `sections` sections from `samples`; `rounds` joint steps.
pub(crate) fn learn(samples: &[[f32; BLOCK]], sections: usize, rounds: usize, seed: u64) -> Atoms {
    let mut atoms = vec![[0.0; BLOCK]; sections * ATOMS];
    if samples.is_empty() {
        return atoms;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut residual = samples.to_vec();
    for section in atoms.chunks_exact_mut(ATOMS) {
        learn_section(section, &mut residual, &mut rng);
    }
    for _ in 0..rounds {
        let winners = search_all(samples, &atoms);
        joint_step(samples, &winners, &mut atoms);
    }
    atoms
}

/// Learns one section and takes its winners out of `residual`.
fn learn_section(
    section: &mut [[f32; BLOCK]],
    residual: &mut [[f32; BLOCK]],
    rng: &mut ChaCha8Rng,
) {
    let mut draw = || residual[index::sample(rng, residual.len(), 1).index(0)];
    section.iter_mut().for_each(|atom| *atom = draw());
    let mut wins = [1.0f32; ATOMS];
    for x in residual.iter() {
        let winner = nearest(section, x);
        wins[winner] += 1.0;
        let eta = wins[winner].recip();
        (0..BLOCK).for_each(|i| section[winner][i] += eta * (x[i] - section[winner][i]));
    }
    for _ in 0..KMEANS {
        let winners: Vec<usize> = residual.par_iter().map(|x| nearest(section, x)).collect();
        let (mut sums, mut counts) = ([[0.0f64; BLOCK]; ATOMS], [0.0f64; ATOMS]);
        for (x, &w) in residual.iter().zip(&winners) {
            counts[w] += 1.0;
            (0..BLOCK).for_each(|i| sums[w][i] += f64::from(x[i]));
        }
        for (a, atom) in section.iter_mut().enumerate() {
            if counts[a] > 0.0 {
                *atom = sums[a].map(|v| (v / counts[a]) as f32);
            } else {
                // an atom that never wins starts again from a sample
                *atom = residual[index::sample(rng, residual.len(), 1).index(0)];
            }
        }
    }
    residual.par_iter_mut().for_each(|x| {
        let atom = section[nearest(section, x)];
        (0..BLOCK).for_each(|i| x[i] -= atom[i]);
    });
}

/// The atom nearest to `x`, the lowest among equals.
fn nearest(section: &[[f32; BLOCK]], x: &[f32; BLOCK]) -> usize {
    let mut best = (f32::INFINITY, 0);
    for (a, atom) in section.iter().enumerate() {
        let distance: f32 = (0..BLOCK).map(|i| (x[i] - atom[i]).powi(2)).sum();
        if distance < best.0 {
            best = (distance, a);
        }
    }
    best.1
}

/// Winners of all samples, [sections, n].
fn search_all(samples: &[[f32; BLOCK]], atoms: &Atoms) -> Vec<u8> {
    let sections = atoms.len() / ATOMS;
    let tables = Tables::new(atoms, &identity(BLOCK));
    let mut winners = vec![0; samples.len() * sections];
    samples.par_chunks(CHUNK).zip(winners.par_chunks_mut(CHUNK * sections)).for_each(
        |(samples, winners)| {
            pulp::Arch::new().dispatch(Chunk { tables: &tables, samples, winners });
        },
    );
    winners
}

/// Samples to search the winners of.
struct Chunk<'a> {
    tables: &'a Tables,
    samples: &'a [[f32; BLOCK]],
    winners: &'a mut [u8],
}

impl pulp::WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let mut scratch = Scratch::default();
        let sections = self.winners.len() / self.samples.len();
        let together = self.winners.chunks_mut(sections * S::F32_LANES);
        for (samples, winners) in self.samples.chunks(S::F32_LANES).zip(together) {
            self.tables.search(simd, samples, BEAM, &mut scratch);
            for (lane, winners) in winners.chunks_exact_mut(sections).enumerate() {
                winners.copy_from_slice(&scratch.winners(lane)[..sections]);
            }
        }
    }
}

/// Moves all atoms to the least-squares solution for given winners.
fn joint_step(samples: &[[f32; BLOCK]], winners: &[u8], atoms: &mut Atoms) {
    let sections = atoms.len() / ATOMS;
    let n = atoms.len();
    let mut normal = Mat::<f64>::zeros(n, n);
    let mut rhs = Mat::<f64>::zeros(n, BLOCK);
    for (x, winners) in samples.iter().zip(winners.chunks_exact(sections)) {
        let sum = sum_atoms(atoms, winners);
        for (s, &a) in winners.iter().enumerate() {
            let row = s * ATOMS + usize::from(a);
            (0..BLOCK).for_each(|i| rhs[(row, i)] += f64::from(x[i] - sum[i]));
            for (t, &b) in winners[..=s].iter().enumerate() {
                normal[(row, t * ATOMS + usize::from(b))] += 1.0;
            }
        }
    }
    (0..n).for_each(|i| normal[(i, i)] += INERTIA);
    if cholesky(&mut normal) {
        solve_with(&normal, &mut rhs);
        for (row, atom) in atoms.iter_mut().enumerate() {
            (0..BLOCK).for_each(|i| atom[i] += rhs[(row, i)] as f32);
        }
    }
}
