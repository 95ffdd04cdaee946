//! Least-squares refit of the atoms under the second moment, with winners and scales fixed.
//!
//! All blocks of all rows share the atoms, and the moment couples the blocks, so the normal matrix is never
//! made: conjugate gradients need only "decode, multiply by H, add up per atom". A product with H costs
//! d_in times as much as the rest, so of a large matrix only as many rows take part as the few thousand
//! unknowns need.

use numerics::MatMul;
use rayon::prelude::*;

use crate::parts::{Atoms, sum_atoms};
use crate::search::Problem;
use format::sections::{ATOMS, BLOCK};

/// Iterations: the error flattens out well before.
const ITERATIONS: usize = 16;
/// Blocks whose rows take part, hundreds for every number that is fitted.
const MAX_BLOCKS: usize = 1 << 17;
/// Rows per product.
const PRODUCT_ROWS: usize = 256;
/// Rows per partial sum; fixed, so that sums do not depend on threads.
const GROUP: usize = 32;

/// A matrix with its winners and scales.
pub(crate) struct Refit<'a> {
    problem: &'a Problem<'a>,
    winners: &'a [u8],
    scales: &'a [f32],
    mul_mat: &'a dyn MatMul,
    /// That take part, in ascending order.
    rows: Vec<usize>,
}

impl<'a> Refit<'a> {
    pub(crate) fn new(
        problem: &'a Problem<'a>,
        winners: &'a [u8],
        scales: &'a [f32],
        mul_mat: &'a dyn MatMul,
    ) -> Self {
        let rows = spread(problem.shape.d_out, MAX_BLOCKS / problem.metric.n_blocks);
        Self { problem, winners, scales, mul_mat, rows }
    }

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

    /// `sum over rows of scale * (v H)` per atom, where v is what the rows lack
    /// (`from_weights`) or what `atoms` stand for in them; outliers are left out of both.
    fn gradient(&self, atoms: &Atoms, from_weights: bool) -> Vec<f64> {
        let d_in = self.problem.shape.d_in;
        let mut total = vec![0.0f64; atoms.len() * BLOCK];
        let mut values = vec![0.0f32; PRODUCT_ROWS.min(self.rows.len()) * d_in];
        let mut products = values.clone();
        for rows in self.rows.chunks(PRODUCT_ROWS) {
            let n = rows.len() * d_in;
            let (values, products) = (&mut values[..n], &mut products[..n]);
            self.decode(atoms, rows, from_weights, values);
            self.problem.times_moment(values, self.mul_mat, products);
            self.mask(rows, products);
            let partial: Vec<Vec<f32>> = products
                .par_chunks(GROUP * d_in)
                .zip(rows.par_chunks(GROUP))
                .map(|(values, rows)| self.scatter(atoms.len(), rows, values))
                .collect();
            add_up(&mut total, &partial);
        }
        total
    }

    /// The values of `rows`: `scale * sum of atoms`, or the weights minus that.
    fn decode(&self, atoms: &Atoms, rows: &[usize], from_weights: bool, values: &mut [f32]) {
        let Problem { weights, shape, .. } = *self.problem;
        let sections = atoms.len() / ATOMS;
        let planes = self.problem.metric.n_blocks * sections;
        values.par_chunks_mut(shape.d_in).zip(rows).for_each(|(out, &row)| {
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
        self.mask(rows, values);
    }

    /// Sets the outliers of `rows` to 0 in their values.
    fn mask(&self, rows: &[usize], values: &mut [f32]) {
        for (&row, values) in rows.iter().zip(values.chunks_exact_mut(self.problem.shape.d_in)) {
            for (_, column, _) in self.problem.outliers.entries(row..row + 1) {
                values[column] = 0.0;
            }
        }
    }

    /// Adds the blocks of the values of `rows`, times their row's scale, to the atoms that won them.
    fn scatter(&self, n_atoms: usize, rows: &[usize], values: &[f32]) -> Vec<f32> {
        let d_in = self.problem.shape.d_in;
        let sections = n_atoms / ATOMS;
        let planes = self.problem.metric.n_blocks * sections;
        let mut sums = vec![0.0f32; n_atoms * BLOCK];
        for (&row, values) in rows.iter().zip(values.chunks_exact(d_in)) {
            let (scale, at) = (self.scales[row], row * planes);
            let winners = self.winners[at..at + planes].chunks_exact(sections);
            for (block, winners) in values.chunks(BLOCK).zip(winners) {
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
        let metric = self.problem.metric;
        let n_atoms = sections * ATOMS;
        let weigh = |rows: &[usize]| {
            let scaled = |&row: &usize| metric.diagonal.iter().map(move |h| self.scales[row] * h);
            let values: Vec<f32> = rows.iter().flat_map(scaled).collect();
            self.scatter(n_atoms, rows, &values)
        };
        let partial: Vec<Vec<f32>> = self.rows.par_chunks(GROUP).map(weigh).collect();
        let mut total = vec![0.0f64; n_atoms * BLOCK];
        add_up(&mut total, &partial);
        total
    }
}

/// At most `most` of the rows below `n`, one at least, as even as may be.
fn spread(n: usize, most: usize) -> Vec<usize> {
    let count = most.clamp(1, n.max(1)).min(n);
    (0..count).map(|i| i * n / count).collect()
}

/// Adds the partial sums to `total`, one after the other.
fn add_up(total: &mut [f64], partial: &[Vec<f32>]) {
    for partial in partial {
        total.iter_mut().zip(partial).for_each(|(t, p)| *t += f64::from(*p));
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn to_atoms(flat: &[f64]) -> Atoms {
    flat.as_chunks::<BLOCK>().0.iter().map(|a| a.map(|v| v as f32)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use format::MatrixShape;
    use numerics::coo::Coo;
    use numerics::{Moment, ReferenceMatMul};

    use super::*;
    use crate::metric::Metric;
    use numerics::testing::uniform;

    #[test]
    fn rows_are_all_or_spread_evenly() {
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(spread(5, 5), [0, 1, 2, 3, 4]);
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(10, 0), [0]);
        assert!(spread(0, 3).is_empty());
    }

    /// What the rows cost with `atoms`.
    fn cost(refit: &Refit<'_>, atoms: &Atoms) -> f64 {
        let mut error = vec![0.0; refit.problem.shape.n_weights()];
        let rows: Vec<usize> = (0..refit.problem.shape.d_out).collect();
        refit.decode(atoms, &rows, true, &mut error);
        let mut product = vec![0.0; error.len()];
        refit.problem.times_moment(&error, refit.mul_mat, &mut product);
        error.iter().zip(product).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    }

    #[test]
    fn a_part_of_the_rows_fits_nearly_as_well_as_all() {
        let shape = MatrixShape::new(24, 3000);
        let mut random = uniform(5);
        let weights: Vec<f32> = (0..shape.n_weights()).map(|_| random()).collect();
        let atoms: Atoms = (0..2 * ATOMS).map(|_| std::array::from_fn(|_| random())).collect();
        let near = |i: usize| (-0.3 * (i / 24).abs_diff(i % 24) as f32).exp();
        let h = Moment::whole(&(0..24 * 24).map(near).collect::<Vec<_>>(), 24);
        let metric = Metric::full(Arc::new(h), 0.0, 0.01, shape).unwrap();
        let none = Coo::empty(shape);
        let problem = Problem::new(&weights, shape, &metric, &none, &ReferenceMatMul);
        let scales = vec![1.0; shape.d_out];
        let winners = problem.search(&atoms, &scales, 4, &()).winners;
        let all = Refit::new(&problem, &winners, &scales, &ReferenceMatMul);
        assert_eq!(all.rows.len(), shape.d_out);
        let mut part = Refit::new(&problem, &winners, &scales, &ReferenceMatMul);
        part.rows = spread(shape.d_out, 600);
        let [before, by_all, by_part] =
            [atoms.clone(), all.solve(&atoms), part.solve(&atoms)].map(|a| cost(&all, &a));
        assert!(by_all < 0.9 * before, "{by_all} after {before}");
        // 256 numbers fitted to 600 rows of 24 weights instead of 3000
        assert!(by_all <= by_part && by_part < 1.03 * by_all, "{by_part} against {by_all}");
    }
}
