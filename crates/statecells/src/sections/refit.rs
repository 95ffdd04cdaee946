//! Least-squares refit of the atoms under the second moment, with winners and scales fixed.
//!
//! All blocks of all rows share the atoms, and the moment couples the blocks, so the normal matrix is never
//! made: conjugate gradients need only "decode, multiply by H, add up per atom".

use codec::MatMul;
use rayon::prelude::*;

use super::layout::{ATOMS, Atoms, BLOCK, sum_atoms};
use super::search::Problem;

/// Iterations: the error flattens out well before.
const ITERATIONS: usize = 16;
/// Rows per product.
const PRODUCT_ROWS: usize = 256;
/// Rows per partial sum; fixed, so that sums do not depend on threads.
const GROUP: usize = 32;

/// A matrix with its winners and scales.
pub(crate) struct Refit<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) winners: &'a [u8],
    pub(crate) scales: &'a [f32],
    pub(crate) mul_mat: &'a dyn MatMul,
}

impl Refit<'_> {
    /// The atoms that cost least, starting from `atoms`.
    pub(crate) fn solve(&self, atoms: &Atoms) -> Atoms {
        let n = atoms.len() * BLOCK;
        let preconditioner: Vec<f64> = self.diagonal(atoms.len() / ATOMS);
        let scaled = |r: &[f64]| -> Vec<f64> {
            r.iter().zip(&preconditioner).map(|(r, d)| if *d > 0.0 { r / d } else { 0.0 }).collect()
        };
        let mut residual = self.gradient(atoms, true);
        let mut change = vec![0.0f64; n];
        let mut z = scaled(&residual);
        let mut direction = z.clone();
        let mut energy = inner(&residual, &z);
        let first = energy;
        for _ in 0..ITERATIONS {
            if !(energy > 1e-9 * first && energy.is_finite()) {
                break;
            }
            let image = self.gradient(&to_atoms(&direction), false);
            let curvature = inner(&direction, &image);
            if curvature <= 0.0 || !curvature.is_finite() {
                break;
            }
            let step = energy / curvature;
            for i in 0..n {
                change[i] += step * direction[i];
                residual[i] -= step * image[i];
            }
            z = scaled(&residual);
            let next = inner(&residual, &z);
            for i in 0..n {
                direction[i] = z[i] + next / energy * direction[i];
            }
            energy = next;
        }
        let change = to_atoms(&change);
        let add = |(a, c): (&[f32; BLOCK], &[f32; BLOCK])| std::array::from_fn(|i| a[i] + c[i]);
        atoms.iter().zip(&change).map(add).collect()
    }

    /// `sum over rows of scale * ((target) H)` per atom, where the target is what the rows lack
    /// (`from_weights`) or what `atoms` stand for in them; outliers are left out of both.
    fn gradient(&self, atoms: &Atoms, from_weights: bool) -> Vec<f64> {
        let Problem { shape, metric, .. } = *self.problem;
        let d_in = shape.d_in;
        let mut total = vec![0.0f64; atoms.len() * BLOCK];
        let mut rows = vec![0.0f32; PRODUCT_ROWS.min(shape.d_out) * d_in];
        let mut products = rows.clone();
        for first in (0..shape.d_out).step_by(PRODUCT_ROWS) {
            let n = PRODUCT_ROWS.min(shape.d_out - first);
            let (rows, products) = (&mut rows[..n * d_in], &mut products[..n * d_in]);
            self.decode(atoms, first, from_weights, rows);
            metric.apply_moment(rows, self.mul_mat, products);
            self.mask(first, products);
            let partial: Vec<Vec<f32>> = products
                .par_chunks(GROUP * d_in)
                .enumerate()
                .map(|(group, rows)| self.scatter(atoms.len(), first + group * GROUP, rows))
                .collect();
            for partial in partial {
                total.iter_mut().zip(partial).for_each(|(t, p)| *t += f64::from(p));
            }
        }
        total
    }

    /// Rows from `first` on: `scale * sum of atoms`, or the weights minus that.
    fn decode(&self, atoms: &Atoms, first: usize, from_weights: bool, rows: &mut [f32]) {
        let Problem { weights, shape, .. } = *self.problem;
        let sections = atoms.len() / ATOMS;
        let planes = self.problem.metric.n_blocks * sections;
        rows.par_chunks_mut(shape.d_in).enumerate().for_each(|(i, out)| {
            let row = first + i;
            let winners = &self.winners[row * planes..(row + 1) * planes];
            for (out, winners) in out.chunks_mut(BLOCK).zip(winners.chunks_exact(sections)) {
                let sum = sum_atoms(atoms, winners);
                out.iter_mut().zip(sum).for_each(|(out, v)| *out = self.scales[row] * v);
            }
            if from_weights {
                let weights = &weights[row * shape.d_in..(row + 1) * shape.d_in];
                out.iter_mut().zip(weights).for_each(|(out, w)| *out = w - *out);
            }
        });
        self.mask(first, rows);
    }

    /// Sets the outliers of the rows from `first` on to 0.
    fn mask(&self, first: usize, rows: &mut [f32]) {
        let d_in = self.problem.shape.d_in;
        let n = rows.len() / d_in;
        for (row, column, _) in self.problem.outliers.entries(first..first + n) {
            rows[(row - first) * d_in + column] = 0.0;
        }
    }

    /// Adds the blocks of `rows`, times their row's scale, to the atoms that won them.
    fn scatter(&self, n_atoms: usize, first: usize, rows: &[f32]) -> Vec<f32> {
        let d_in = self.problem.shape.d_in;
        let sections = n_atoms / ATOMS;
        let planes = self.problem.metric.n_blocks * sections;
        let mut sums = vec![0.0f32; n_atoms * BLOCK];
        for (i, row) in rows.chunks_exact(d_in).enumerate() {
            let (scale, at) = (self.scales[first + i], (first + i) * planes);
            let winners = self.winners[at..at + planes].chunks_exact(sections);
            for (block, winners) in row.chunks(BLOCK).zip(winners) {
                for (section, winner) in winners.iter().enumerate() {
                    let atom = section * ATOMS + usize::from(*winner);
                    let sums = &mut sums[atom * BLOCK..(atom + 1) * BLOCK];
                    sums.iter_mut().zip(block).for_each(|(s, v)| *s += scale * v);
                }
            }
        }
        sums
    }

    /// Diagonal of the normal matrix without the coupling between blocks.
    fn diagonal(&self, sections: usize) -> Vec<f64> {
        let Problem { shape, metric, .. } = *self.problem;
        let n_atoms = sections * ATOMS;
        let firsts: Vec<usize> = (0..shape.d_out).step_by(GROUP).collect();
        let weigh = |&first: &usize| {
            let scales = &self.scales[first..(first + GROUP).min(shape.d_out)];
            let rows: Vec<f32> =
                scales.iter().flat_map(|s| metric.diagonal.iter().map(move |h| s * h)).collect();
            self.scatter(n_atoms, first, &rows)
        };
        let partial: Vec<Vec<f32>> = firsts.par_iter().map(weigh).collect();
        let mut total = vec![0.0f64; n_atoms * BLOCK];
        for partial in partial {
            total.iter_mut().zip(partial).for_each(|(t, p)| *t += f64::from(p));
        }
        total
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn to_atoms(flat: &[f64]) -> Atoms {
    flat.as_chunks::<BLOCK>().0.iter().map(|a| a.map(|v| v as f32)).collect()
}
