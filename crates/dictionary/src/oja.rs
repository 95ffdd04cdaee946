//! Oja's rule on the winners of a k-WTA competition.
//!
//! For a row w with correlations y = D^T w, each of the k winners j moves by
//! `d_j += eta * y_j * (w - y_j * d_j - lambda * sum_{l != j} y_l d_l)` over the winners l and is
//! normalized. With lambda = 0 that is Oja's rule (J. Math. Biology 15, 1982) for each winner alone;
//! lambda > 0 is the lateral, anti-Hebbian decorrelation between winners (Foldiak, Biol. Cybernetics 64,
//! 1990), here in the form that gives Oja's subspace rule (Int. J. Neural Systems 1, 1989) at lambda = 1.

use numerics::EncodeContext;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::GlobalParams;
use super::fit::Fitter;
use super::gram::Gram;
use super::samples::{BATCH, Samples};
use super::selection::Selection;
use crate::Encoder;
use format::Scheme;
use numerics::linalg::{add_scaled, normalize};

/// What a row's winners, or an atom's wins, are: (atom or row of the batch, correlation).
type Wins = Vec<(usize, f32)>;

/// One pass over all samples in random order; returns how often each atom won.
pub(crate) fn pass(
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
        // entries of scaled rows have size 1, so that a row's squared norm is about d_in
        let eta = params.eta / d_in as f32;
        let step = Step { eta, anti_hebb: params.anti_hebb, x: &x, lateral: &lateral };
        atoms
            .par_chunks_exact_mut(d_in)
            .zip(&by_atom)
            .for_each(|(atom, wins)| step.update(atom, wins));
    }
    n_wins
}

/// The k winners of every row of a batch with their correlations.
fn winners(k: usize, atoms: &[f32], d_in: usize, y: &[f32]) -> Vec<Wins> {
    let select = Selection { scheme: Scheme::Sign, encoder: Encoder::TopK, k };
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
        // the lateral sum runs over all winners: the atom's own share of it is taken out here
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

#[cfg(test)]
mod tests {
    use format::MatrixShape;
    use numerics::ReferenceMatMul;
    use rand::SeedableRng;

    use super::*;
    use crate::metric::Metric;
    use numerics::linalg::dot;
    use numerics::testing::uniform;

    const D_IN: usize = 8;

    /// Noisy multiples of `directions`, one of them per row.
    fn rows(directions: &[[f32; D_IN]], n: usize) -> Vec<f32> {
        let mut noise = uniform(1);
        let mut out = Vec::new();
        for row in 0..n {
            let size = if row % 2 == 0 { 1.0 } else { -1.5 };
            let direction = &directions[row % directions.len()];
            out.extend(direction.map(|d| size * d + 0.2 * noise()));
        }
        out
    }

    fn run(params: &GlobalParams, w: &[f32], atoms: &mut [f32], passes: usize) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let metric = Metric::new(w, MatrixShape::new(D_IN, w.len() / D_IN), None).unwrap();
        let samples = Samples::draw(w, &metric, usize::MAX, &mut rng);
        let context =
            EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 1, progress: &() };
        (0..passes).map(|_| pass(params, &samples, atoms, &context, &mut rng)).last().unwrap()
    }

    #[test]
    fn winners_find_the_directions_of_their_rows() {
        let mut directions = [[0.0; D_IN]; 3];
        (0..3).for_each(|i| directions[i][2 * i] = 1.0);
        let w = rows(&directions, 600);
        let params = GlobalParams { k: 1, eta: 0.2, ..GlobalParams::default() };
        // atom i starts 45 degrees off direction i; the last atom wins nothing
        let mut atoms = vec![0.0; 4 * D_IN];
        for i in 0..3 {
            atoms[i * D_IN + 2 * i] = 0.7;
            atoms[i * D_IN + 2 * i + 1] = 0.7;
        }
        let wins = run(&params, &w, &mut atoms, 5);
        for (atom, direction) in atoms.chunks(D_IN).zip(&directions) {
            assert!(dot(atom, direction).abs() > 0.99, "{atom:?}");
        }
        assert_eq!(wins, [200, 200, 200, 0]);
    }

    #[test]
    fn lateral_term_decorrelates_winners() {
        // both atoms win every row; alone, Oja's rule draws both to the first principal component
        let mut first = [0.0; D_IN];
        let mut second = [0.0; D_IN];
        (first[0], second[1]) = (1.0, 0.6);
        let w = rows(&[first, second], 600);
        let overlap = |anti_hebb| {
            let params = GlobalParams { k: 2, eta: 0.2, anti_hebb, ..GlobalParams::default() };
            let mut atoms = vec![0.0; 2 * D_IN];
            (atoms[0], atoms[1]) = (0.8, 0.6);
            (atoms[D_IN], atoms[D_IN + 1]) = (0.6, 0.8);
            run(&params, &w, &mut atoms, 5);
            dot(&atoms[..D_IN], &atoms[D_IN..]).abs()
        };
        let (alone, lateral) = (overlap(0.0), overlap(1.0));
        assert!(alone > 0.95, "{alone}");
        assert!(lateral < 0.2, "{lateral}");
    }
}
