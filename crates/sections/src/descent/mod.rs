//! Coordinate descent over blocks: each block's winners are searched anew while all others stay, those to its right too.
//!
//! The pass from left to right leaves errors that later blocks could not make up for, and knows nothing of what comes. With all
//! other errors e known, the cost of block b is e_b H_bb e_b^T + 2 e_b g_b^T, g_b being what the other blocks' errors send
//! through H: a search like the first one, for a wanted block that g_b has moved. The beam may miss what a block has already, which
//! stays then, so that no step raises the cost; QuantEase (Behdin et al. 2023) does the same with single weights.

mod stripe;

use numerics::{FactoredMoment, MatMul};
use rayon::prelude::*;

use crate::parts::{Atoms, sum_atoms};
use crate::search::{GROUP, Problem, RowSums, STRIPE, STRIPE_INPUTS};
use format::sections::{ATOMS, BLOCK};
use stripe::{Part, Stripe};

/// A matrix whose winners are known, and what its errors cost.
pub(crate) struct Descent<'a> {
    problem: &'a Problem<'a>,
    full: &'a FactoredMoment,
}

impl<'a> Descent<'a> {
    /// `None` where every block stands by itself: if there are no off-diagonal moments.
    pub(crate) fn new(problem: &'a Problem<'a>) -> Option<Self> {
        Some(Self { problem, full: problem.metric.as_full()? })
    }

    /// Searches `winners`, [planes, d_out], anew `sweeps` times for rows scaled by `scales`; what the rows cost then.
    pub(crate) fn run(
        &self,
        (atoms, scales): (&Atoms, &[f32]),
        winners: &mut [u8],
        (beam, sweeps): (usize, usize),
        mul_mat: &dyn MatMul,
        progress: &dyn numerics::Progress,
    ) -> Vec<RowSums> {
        let Problem { shape, metric, .. } = self.problem;
        let mut errors = self.errors(atoms, scales, winners);
        let mut images = vec![0.0f32; errors.len()];
        self.problem.times_moment(&errors, mul_mat, &mut images);
        let moments = self.problem.moments();
        let mut changes = vec![0.0f32; STRIPE_INPUTS * shape.d_out];
        let planes = winners.len() / shape.d_out;
        for _ in 0..sweeps {
            for first in (0..metric.n_blocks).step_by(STRIPE) {
                let blocks = first..(first + STRIPE).min(metric.n_blocks);
                let stripe = Stripe::new(self, atoms, blocks, beam);
                winners
                    .par_chunks_mut(GROUP * planes)
                    .zip(errors.par_chunks_mut(GROUP * shape.d_in))
                    .zip(images.par_chunks_mut(GROUP * shape.d_in))
                    .zip(changes.par_chunks_mut(GROUP * STRIPE_INPUTS))
                    .enumerate()
                    .for_each(|(group, (((winners, errors), images), changes))| {
                        let (stripe, first) = (&stripe, group * GROUP);
                        let part = Part { stripe, first, scales, winners, errors, images, changes };
                        pulp::Arch::new().dispatch(part);
                    });
                self.full.push_changes(moments, first * BLOCK, &changes, &mut images);
                progress.advance(stripe.blocks.len() as u64);
            }
        }
        let rows = errors.par_chunks(shape.d_in).zip(images.par_chunks(shape.d_in)).enumerate();
        rows.map(|(row, (errors, images))| self.sums(row, scales[row], errors, images)).collect()
    }

    /// What the winners miss, [d_in, d_out], in units of the rows' scales; 0 for outliers.
    fn errors(&self, atoms: &Atoms, scales: &[f32], winners: &[u8]) -> Vec<f32> {
        let Problem { shape, outliers, .. } = self.problem;
        let (sections, planes) = (atoms.len() / ATOMS, winners.len() / shape.d_out);
        let mut errors = vec![0.0f32; shape.n_weights()];
        errors.par_chunks_mut(shape.d_in).enumerate().for_each(|(row, errors)| {
            let winners = winners[row * planes..][..planes].chunks_exact(sections);
            for ((block, errors), winners) in errors.chunks_mut(BLOCK).enumerate().zip(winners) {
                let x = self.problem.load(self.problem.weights, (row, scales[row]), block);
                let sum = sum_atoms(atoms, winners);
                errors.iter_mut().zip(x.iter().zip(sum)).for_each(|(e, (x, q))| *e = x - q);
            }
            for (_, column, _) in outliers.entries(row..row + 1) {
                errors[column] = 0.0;
            }
        });
        errors
    }

    /// The sums of a row x from its errors e and e H, both in units of its scale.
    fn sums(&self, row: usize, scale: f32, errors: &[f32], images: &[f32]) -> RowSums {
        let problem = self.problem;
        let mut outliers = problem.outliers.entries(row..row + 1).map(|o| o.1).peekable();
        let (mut energy, mut of_row, mut of_error) = (0.0f64, 0.0f64, 0.0f64);
        for block in 0..problem.metric.n_blocks {
            let at = block * BLOCK;
            let x = problem.load(problem.weights, (row, scale), block);
            let projected = problem.load(&problem.projected, (row, scale), block);
            energy += projected.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let values = errors[at..].iter().zip(&images[at..]).zip(x);
            for (i, ((e, image), x)) in values.enumerate() {
                let is_outlier = outliers.next_if(|o| *o == at + i).is_some();
                let x = if is_outlier { 0.0 } else { f64::from(x) };
                of_row += x * f64::from(*image);
                of_error += f64::from(*e) * f64::from(*image);
            }
        }
        RowSums { energy, dot: energy - of_row, square: energy - 2.0 * of_row + of_error }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use format::MatrixShape;
    use numerics::coo::Coo;
    use numerics::testing::uniform;
    use numerics::{Moment, ReferenceMatMul};

    use super::*;
    use crate::metric::Metric;

    /// A matrix whose last block is not whole, with outliers, and inputs in spans of `width`.
    fn descends(width: usize) {
        let shape = MatrixShape::new(140, 37);
        let mut random = uniform(5);
        let weights: Vec<f32> = (0..shape.n_weights()).map(|_| random()).collect();
        let atoms: Atoms = (0..2 * ATOMS).map(|_| std::array::from_fn(|_| random())).collect();
        let h = |i: usize, j: usize| (-0.2 * i.abs_diff(j) as f32).exp();
        let moment = Arc::new(Moment::from_fn(shape.d_in, width, h));
        let metric = Metric::full(moment, 0.0, 0.01, shape).unwrap();
        let outliers = Coo::largest(&weights, shape, 60, None).unwrap();
        let problem = Problem::new(&weights, shape, &metric, &outliers, &ReferenceMatMul);
        let mut scales: Vec<f32> = (0..shape.d_out).map(|row| 0.5 + 0.01 * row as f32).collect();
        scales[3] = 0.0;
        let coded = problem.search(&atoms, &scales, 4, &());
        let cost = |rows: &[RowSums]| -> f64 {
            rows.iter().zip(&scales).map(|(r, s)| r.cost(1.0) * f64::from(*s).powi(2)).sum()
        };
        let descent = Descent::new(&problem).unwrap();
        let mut last = f64::INFINITY;
        for sweeps in 0..4 {
            let mut winners = coded.winners.clone();
            let code = (&atoms, scales.as_slice());
            let rows = descent.run(code, &mut winners, (4, sweeps), &ReferenceMatMul, &());
            if sweeps == 0 {
                // Nothing is searched: what the first search found, and its sums.
                assert_eq!(winners, coded.winners);
                for (a, b) in rows.iter().zip(&coded.rows) {
                    let sums = [(a.energy, b.energy), (a.dot, b.dot), (a.square, b.square)];
                    for (a, b) in sums {
                        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{a} {b}");
                    }
                }
            }
            let now = cost(&rows);
            assert!(now < last, "{now} after {last}");
            last = now;
            // The sums that were kept up are those of the winners.
            let mut same = winners.clone();
            let again = descent.run(code, &mut same, (4, 0), &ReferenceMatMul, &());
            assert!((cost(&again) - now).abs() < 1e-3 * now, "{} {now}", cost(&again));
        }
        assert!(last < 0.95 * cost(&coded.rows), "{last} of {}", cost(&coded.rows));
    }

    #[test]
    fn every_sweep_lowers_the_cost() {
        descends(140);
    }

    #[test]
    fn spans_are_swept_each_by_itself() {
        descends(64);
    }
}
