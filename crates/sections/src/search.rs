//! One pass over the matrix: winners for every block, errors pushed on to the blocks to the right.

use std::ops::Range;
use std::sync::OnceLock;

use format::MatrixShape;
use numerics::coo::Coo;
use numerics::{FactoredMoment, MatMul, SPAN_STEP};
use rayon::prelude::*;

use crate::beam::{BlockFactor, MAX_LANES, Scratch, Tables, times};
use crate::metric::Metric;
use crate::parts::{Atoms, sum_atoms};
use format::sections::BLOCK;

/// Blocks whose tables are in memory at the same time; errors reach the columns behind them together.
pub(crate) const STRIPE: usize = 8;
/// Inputs of these blocks.
pub(crate) const STRIPE_INPUTS: usize = STRIPE * BLOCK;
// Errors are handed on band by band of a factor, and no stripe lies in two spans of a second moment.
const _: () = assert!(SPAN_STEP == STRIPE_INPUTS);
/// Rows per task.
pub(crate) const GROUP: usize = 32;
/// Rows per product with the second moment.
const PRODUCT_ROWS: usize = 256;

/// The matrix as the search sees it.
pub(crate) struct Problem<'a> {
    pub(crate) weights: &'a [f32],
    pub(crate) shape: MatrixShape,
    pub(crate) metric: &'a Metric,
    /// Positions that are corrected exactly afterwards: their error is 0 whatever the winners.
    pub(crate) outliers: &'a Coo,
    /// `weights R` without outliers, [d_in, d_out]; empty unless the metric is full.
    pub(crate) projected: Vec<f32>,
    /// See [`Self::moments`].
    moments: OnceLock<Vec<Vec<f32>>>,
}

/// The sums of one row in units of its scale: x is the row, q what its winners stand for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowSums {
    /// |x R|^2
    pub(crate) energy: f64,
    /// <x R, q R>
    pub(crate) dot: f64,
    /// |q R|^2
    pub(crate) square: f64,
}

impl RowSums {
    /// The factor of the row's scale that costs least.
    pub(crate) fn best_factor(&self) -> f64 {
        if self.square > 0.0 && self.dot > 0.0 { self.dot / self.square } else { 1.0 }
    }

    /// The cost with that factor.
    pub(crate) fn cost(&self, factor: f64) -> f64 {
        (self.energy - factor * (2.0 * self.dot - factor * self.square)).max(0.0)
    }
}

/// Winners of a whole matrix.
pub(crate) struct Coded {
    /// Winners, [planes, d_out].
    pub(crate) winners: Vec<u8>,
    pub(crate) rows: Vec<RowSums>,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(
        weights: &'a [f32],
        shape: MatrixShape,
        metric: &'a Metric,
        outliers: &'a Coo,
        mul_mat: &dyn MatMul,
    ) -> Self {
        let (projected, moments) = (Vec::new(), OnceLock::new());
        let mut problem = Self { weights, shape, metric, outliers, projected, moments };
        if let Some(full) = metric.as_full() {
            let factor = full.factor_transposed();
            problem.projected = vec![0.0; shape.n_weights()];
            let mut rows = Vec::new();
            for (chunk, out) in problem.projected.chunks_mut(PRODUCT_ROWS * shape.d_in).enumerate()
            {
                let first = chunk * PRODUCT_ROWS;
                let n = out.len() / shape.d_in;
                rows.clear();
                rows.extend_from_slice(&weights[first * shape.d_in..(first + n) * shape.d_in]);
                for (row, column, _) in outliers.entries(first..first + n) {
                    rows[(row - first) * shape.d_in + column] = 0.0;
                }
                full.multiply(&factor, &rows, mul_mat, out);
            }
        }
        problem
    }

    /// H, [n, n] for every span of n inputs, made when first asked for; none without off-diagonal moments.
    pub(crate) fn moments(&self) -> &[Vec<f32>] {
        let make = || self.metric.as_full().map(FactoredMoment::damped).unwrap_or_default();
        self.moments.get_or_init(make)
    }

    /// `out = rows H`, both [d_in, n].
    pub(crate) fn times_moment(&self, rows: &[f32], mul_mat: &dyn MatMul, out: &mut [f32]) {
        self.metric.multiply(self.moments(), rows, mul_mat, out);
    }

    /// The block `block` of a row of `matrix`, [d_in, d_out], in units of the row's scale; inputs that are not there are 0.
    #[inline(always)]
    pub(crate) fn load(
        &self,
        matrix: &[f32],
        (row, scale): (usize, f32),
        block: usize,
    ) -> [f32; BLOCK] {
        let d_in = self.shape.d_in;
        let width = BLOCK.min(d_in - block * BLOCK);
        let mut x = [0.0; BLOCK];
        x[..width].copy_from_slice(&matrix[row * d_in + block * BLOCK..][..width]);
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        for v in &mut x {
            *v *= inverse;
        }
        x
    }

    /// The block `block` of a row of the weights; 0 for `outliers`, the row's columns that are corrected exactly.
    #[inline(always)]
    pub(crate) fn load_masked(
        &self,
        row: (usize, f32),
        block: usize,
        outliers: &[usize],
    ) -> [f32; BLOCK] {
        let mut x = self.load(self.weights, row, block);
        mask(outliers, block, &mut x);
        x
    }

    /// Searches the winners of all blocks for rows scaled by `scales`.
    pub(crate) fn search(
        &self,
        atoms: &Atoms,
        scales: &[f32],
        beam: usize,
        progress: &dyn numerics::Progress,
    ) -> Coded {
        let sections = atoms.len() / format::sections::ATOMS;
        let n_blocks = self.metric.n_blocks;
        let planes = n_blocks * sections;
        let mut winners = vec![0u8; planes * self.shape.d_out];
        let mut rows = vec![RowSums::default(); self.shape.d_out];
        // errors that earlier columns leave to later ones; without off-diagonal moments there are none
        let width = if self.metric.as_full().is_some() { n_blocks * BLOCK } else { 1 };
        let mut carry = vec![0.0f32; width * self.shape.d_out];
        let mut errors = vec![0.0f32; STRIPE_INPUTS * self.shape.d_out];
        for first in (0..n_blocks).step_by(STRIPE) {
            let blocks = first..(first + STRIPE).min(n_blocks);
            let stripe = Stripe::new(self, atoms, blocks, beam);
            rows.par_chunks_mut(GROUP)
                .zip(winners.par_chunks_mut(GROUP * planes))
                .zip(carry.par_chunks_mut(GROUP * width))
                .zip(errors.par_chunks_mut(GROUP * STRIPE_INPUTS))
                .enumerate()
                .for_each(|(group, (((rows, winners), carry), errors))| {
                    let (stripe, first) = (&stripe, group * GROUP);
                    let scales = &scales[first..];
                    let part = Part { stripe, first, scales, rows, winners, carry, errors };
                    pulp::Arch::new().dispatch(part);
                });
            if let Some(full) = self.metric.as_full() {
                full.push_band(first * BLOCK, &errors, &mut carry);
            }
            progress.advance(stripe.blocks.len() as u64);
        }
        Coded { winners, rows }
    }
}

/// A task: a stripe of some rows. A closure in its place would be compiled without the machine's instructions, because it
/// is called through a function that is not inlined.
struct Part<'a> {
    stripe: &'a Stripe<'a>,
    first: usize,
    scales: &'a [f32],
    rows: &'a mut [RowSums],
    winners: &'a mut [u8],
    carry: &'a mut [f32],
    errors: &'a mut [f32],
}

impl pulp::WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        self.stripe.encode(simd, self);
    }
}

/// Some neighbouring blocks of all rows.
struct Stripe<'a> {
    problem: &'a Problem<'a>,
    atoms: &'a Atoms,
    beam: usize,
    blocks: Range<usize>,
    tables: Vec<(BlockFactor, Tables)>,
}

impl<'a> Stripe<'a> {
    fn new(problem: &'a Problem<'a>, atoms: &'a Atoms, blocks: Range<usize>, beam: usize) -> Self {
        let make = |block: usize| {
            let factor = problem.metric.block(block);
            (factor, Tables::new(atoms, &factor))
        };
        let tables = blocks.clone().into_par_iter().map(make).collect();
        Self { problem, atoms, beam, blocks, tables }
    }

    /// Codes the stripe's blocks of the rows of a task.
    #[inline(always)]
    fn encode<S: pulp::Simd>(&self, simd: S, part: Part<'_>) {
        let Part { first, scales, rows, winners, carry, errors, .. } = part;
        let n = rows.len();
        let mut scratch = Scratch::default();
        let (width, planes) = (carry.len() / n, winners.len() / n);
        let columns = columns_by_row(self.problem.outliers, first..first + n);
        let (errors, _) = errors.as_chunks_mut();
        let per_row = winners.chunks_exact_mut(planes).zip(rows);
        let per_row = per_row.zip(carry.chunks_exact_mut(width).zip(errors));
        let mut fits = Vec::with_capacity(n);
        for (i, (outliers, ((winners, sums), (carry, errors)))) in
            columns.into_iter().zip(per_row).enumerate()
        {
            let (row, scale) = (first + i, scales[i]);
            fits.push(RowFit { stripe: self, row, scale, outliers, winners, carry, errors, sums });
        }
        for fits in fits.chunks_mut(S::F32_LANES) {
            self.encode_together(simd, fits, &mut scratch);
        }
    }

    /// Codes the stripe's blocks of as many rows as a vector has lanes, or fewer.
    #[inline(always)]
    fn encode_together<S: pulp::Simd>(
        &self,
        simd: S,
        fits: &mut [RowFit<'_>],
        scratch: &mut Scratch,
    ) {
        let mut wanted = [Wanted::default(); MAX_LANES];
        let mut projected = [[0.0; BLOCK]; MAX_LANES];
        for (block, (factor, tables)) in self.blocks.clone().zip(&self.tables) {
            for ((fit, wanted), projected) in fits.iter().zip(&mut wanted).zip(&mut projected) {
                *wanted = fit.wanted(block, factor);
                for ((p, own), before) in projected.iter_mut().zip(wanted.own).zip(wanted.before) {
                    *p = own + before;
                }
            }
            tables.search(simd, &projected[..fits.len()], self.beam, scratch);
            for (lane, (fit, wanted)) in fits.iter_mut().zip(&wanted).enumerate() {
                fit.take(block, factor, wanted, scratch.winners(lane));
            }
        }
    }
}

/// One row of a stripe.
struct RowFit<'a> {
    stripe: &'a Stripe<'a>,
    row: usize,
    scale: f32,
    /// Columns that are corrected exactly.
    outliers: Vec<usize>,
    /// Of the whole row.
    winners: &'a mut [u8],
    /// What errors of earlier columns leave to every column.
    carry: &'a mut [f32],
    /// Of the stripe's inputs.
    errors: &'a mut [f32; STRIPE_INPUTS],
    sums: &'a mut RowSums,
}

/// What a block's winners are searched for, in units of the row's scale.
#[derive(Clone, Copy, Default)]
struct Wanted {
    x: [f32; BLOCK],
    /// x in the metric of the block.
    own: [f32; BLOCK],
    /// What earlier columns leave to it.
    before: [f32; BLOCK],
}

impl RowFit<'_> {
    #[inline(always)]
    fn wanted(&self, block: usize, factor: &BlockFactor) -> Wanted {
        let problem = self.stripe.problem;
        let x = problem.load_masked((self.row, self.scale), block, &self.outliers);
        let before = match problem.metric.as_full() {
            Some(_) => self.carry[block * BLOCK..][..BLOCK].try_into().expect("whole block"),
            None => [0.0; BLOCK],
        };
        Wanted { x, own: times(&x, factor), before }
    }

    /// Takes the winners that begin `found` for `block`.
    #[inline(always)]
    fn take(&mut self, block: usize, factor: &BlockFactor, wanted: &Wanted, found: &[u8]) {
        let found = &found[..self.winners.len() / self.stripe.problem.metric.n_blocks];
        let Stripe { problem, atoms, blocks, .. } = self.stripe;
        let Wanted { x, own, before } = wanted;
        let full = problem.metric.as_full();
        self.winners[block * found.len()..][..found.len()].copy_from_slice(found);
        let sum = sum_atoms(atoms, found);
        let mut e: [f32; BLOCK] = std::array::from_fn(|i| x[i] - sum[i]);
        mask(&self.outliers, block, &mut e);
        let error = times(&e, factor);
        let whole = match full {
            Some(_) => problem.load(&problem.projected, (self.row, self.scale), block),
            None => *own,
        };
        for i in 0..BLOCK {
            let x = f64::from(whole[i]);
            let q = x - f64::from(error[i] + before[i]);
            self.sums.energy += x * x;
            self.sums.dot += x * q;
            self.sums.square += q * q;
        }
        if let Some(full) = full {
            let (next, end) = ((block + 1) * BLOCK, blocks.end * BLOCK);
            full.push_errors((block * BLOCK, &e), next, &mut self.carry[next..end]);
            self.errors[(block - blocks.start) * BLOCK..][..BLOCK].copy_from_slice(&e);
        }
    }
}

/// Columns of the outliers of every one of `rows`.
pub(crate) fn columns_by_row(outliers: &Coo, rows: Range<usize>) -> Vec<Vec<usize>> {
    let mut columns = vec![Vec::new(); rows.len()];
    for (row, column, _) in outliers.entries(rows.clone()) {
        columns[row - rows.start].push(column);
    }
    columns
}

/// Makes the values of `block` at the columns `outliers` 0.
#[inline(always)]
pub(crate) fn mask(outliers: &[usize], block: usize, values: &mut [f32; BLOCK]) {
    for &column in outliers.iter().filter(|c| **c / BLOCK == block) {
        values[column % BLOCK] = 0.0;
    }
}
