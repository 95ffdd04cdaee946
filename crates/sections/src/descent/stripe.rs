//! Some neighbouring blocks of all rows, each searched anew with the errors of all others known.

use std::ops::Range;

use crate::beam::{BlockFactor, MAX_LANES, Scratch, Tables, times};
use crate::descent::Descent;
use crate::parts::{Atoms, sum_atoms};
use crate::search::{Problem, STRIPE_INPUTS, columns_by_row, mask};
use format::sections::{ATOMS, BLOCK, MAX_SECTIONS};
use numerics::linalg::add_four_scaled;
use rayon::prelude::*;

/// Some neighbouring blocks of all rows.
pub(super) struct Stripe<'a> {
    descent: &'a Descent<'a>,
    atoms: &'a Atoms,
    beam: usize,
    pub(super) blocks: Range<usize>,
    /// The span's H.
    moment: &'a [f32],
    /// Inputs of the span.
    span: Range<usize>,
    tables: Vec<BlockTables>,
}

/// What a block's search needs.
struct BlockTables {
    /// H_bb
    moment: BlockFactor,
    /// F with F F^T = H_bb.
    factor: BlockFactor,
    /// F^-T
    inverse: BlockFactor,
    tables: Tables,
}

impl<'a> Stripe<'a> {
    pub(super) fn new(
        descent: &'a Descent<'a>,
        atoms: &'a Atoms,
        blocks: Range<usize>,
        beam: usize,
    ) -> Self {
        let width = descent.full.span_width();
        let span = blocks.start * BLOCK / width;
        let moment = descent.problem.moments()[span].as_slice();
        let first = span * width;
        let n = (descent.problem.shape.d_in - first).min(width);
        let make = |block: usize| BlockTables::new(atoms, moment, n, block * BLOCK - first);
        let tables = blocks.clone().into_par_iter().map(make).collect();
        Self { descent, atoms, beam, blocks, moment, span: first..first + n, tables }
    }

    /// H between input `i` and `columns`, all of the span.
    #[inline(always)]
    fn moments(&self, i: usize, columns: Range<usize>) -> &[f32] {
        let Range { start, end } = self.span;
        &self.moment[(i - start) * (end - start)..][columns.start - start..columns.end - start]
    }

    fn inputs(&self) -> Range<usize> {
        self.blocks.start * BLOCK..(self.blocks.end * BLOCK).min(self.span.end)
    }
}

impl BlockTables {
    /// For the inputs from `first` on of a span with moment `h`, [n, n].
    fn new(atoms: &Atoms, h: &[f32], n: usize, first: usize) -> Self {
        let width = BLOCK.min(n - first);
        let mut moment = [[0.0; BLOCK]; BLOCK];
        for (i, row) in moment.iter_mut().enumerate().take(width) {
            row[..width].copy_from_slice(&h[(first + i) * n + first..][..width]);
        }
        let (factor, inverse) = factored(&moment, width);
        Self { moment, factor, inverse, tables: Tables::new(atoms, &factor) }
    }
}

/// F, lower triangular, with F F^T = `h`, and F^-T, for the first `n` inputs; the rest is 0.
fn factored(h: &BlockFactor, n: usize) -> (BlockFactor, BlockFactor) {
    let mut f = [[0.0f64; BLOCK]; BLOCK];
    for i in 0..n {
        for j in 0..=i {
            let products: f64 = (0..j).map(|k| f[i][k] * f[j][k]).sum();
            let rest = f64::from(h[i][j]) - products;
            // A damped moment is positive definite; rounding may leave a block's last pivots none.
            f[i][j] =
                if i == j { rest.max(f64::from(h[i][i]) * 1e-6).sqrt() } else { rest / f[j][j] };
        }
    }
    // Column by column of F^-1, which is the transpose's rows.
    let mut inverse = [[0.0f64; BLOCK]; BLOCK];
    for (column, inverse) in inverse.iter_mut().enumerate().take(n) {
        for i in column..n {
            let unit = f64::from(u8::from(i == column));
            let products: f64 = (column..i).map(|k| f[i][k] * inverse[k]).sum();
            inverse[i] = (unit - products) / f[i][i];
        }
    }
    let single = |m: [[f64; BLOCK]; BLOCK]| m.map(|row| row.map(|v| v as f32));
    (single(f), single(inverse))
}

/// A task: a stripe of some rows.
pub(super) struct Part<'a> {
    pub(super) stripe: &'a Stripe<'a>,
    /// First row.
    pub(super) first: usize,
    /// Of all rows.
    pub(super) scales: &'a [f32],
    pub(super) winners: &'a mut [u8],
    pub(super) errors: &'a mut [f32],
    pub(super) images: &'a mut [f32],
    /// By how much the errors of the stripe's inputs change, [STRIPE_INPUTS, n].
    pub(super) changes: &'a mut [f32],
}

impl pulp::WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { stripe, first, scales, winners, errors, images, changes } = self;
        let Problem { shape, outliers, .. } = stripe.descent.problem;
        let n = errors.len() / shape.d_in;
        let planes = winners.len() / n;
        let per_row = winners
            .chunks_exact_mut(planes)
            .zip(errors.chunks_exact_mut(shape.d_in))
            .zip(images.chunks_exact_mut(shape.d_in).zip(changes.as_chunks_mut().0));
        let mut rows = Vec::with_capacity(n);
        let columns = columns_by_row(outliers, first..first + n);
        for ((row, outliers), ((winners, errors), (images, changes))) in
            (first..).zip(columns).zip(per_row)
        {
            let scale = scales[row];
            *changes = [0.0; STRIPE_INPUTS];
            rows.push(Row { row, scale, outliers, winners, errors, images, changes });
        }
        let mut scratch = Scratch::default();
        for rows in rows.chunks_mut(S::F32_LANES) {
            stripe.search(simd, rows, &mut scratch);
        }
    }
}

/// One row of a task.
struct Row<'a> {
    row: usize,
    scale: f32,
    /// Columns that are corrected exactly.
    outliers: Vec<usize>,
    winners: &'a mut [u8],
    errors: &'a mut [f32],
    images: &'a mut [f32],
    /// By how much the stripe's errors have changed.
    changes: &'a mut [f32; STRIPE_INPUTS],
}

impl Stripe<'_> {
    /// Searches the stripe's blocks of as many rows as a vector has lanes, or fewer.
    #[inline(always)]
    fn search<S: pulp::Simd>(&self, simd: S, rows: &mut [Row<'_>], scratch: &mut Scratch) {
        let mut wanted = [[0.0; BLOCK]; MAX_LANES];
        let mut blocks = [[0.0; BLOCK]; MAX_LANES];
        for (block, tables) in self.blocks.clone().zip(&self.tables) {
            for ((row, wanted), x) in rows.iter().zip(&mut wanted).zip(&mut blocks) {
                let problem = self.descent.problem;
                *x = problem.load_masked((row.row, row.scale), block, &row.outliers);
                *wanted = row.wanted(x, block, tables);
            }
            tables.tables.search(simd, &wanted[..rows.len()], self.beam, scratch);
            for (lane, (row, x)) in rows.iter_mut().zip(&blocks).enumerate() {
                row.improve((self, tables), (x, &wanted[lane]), block, scratch.winners(lane));
            }
        }
    }

    /// Adds to the stripe's part of a row's e H what `changes` of the errors from input `first` on add.
    #[inline(always)]
    fn add(&self, images: &mut [f32], first: usize, changes: &[f32; BLOCK]) {
        let columns = self.inputs();
        let out = &mut images[columns.clone()];
        let (quads, _) = changes.as_chunks::<4>();
        for (q, e) in quads.iter().enumerate() {
            if *e == [0.0; 4] {
                continue;
            }
            // Changes of inputs that are not there are 0.
            let row = |i: usize| {
                self.moments((first + 4 * q + i).min(self.span.end - 1), columns.clone())
            };
            add_four_scaled(out, e, [row(0), row(1), row(2), row(3)]);
        }
    }
}

impl Row<'_> {
    /// The block's part of `values`, which has one for every input; 0 for inputs that are not there.
    #[inline(always)]
    fn part(values: &[f32], block: usize) -> [f32; BLOCK] {
        let mut part = [0.0; BLOCK];
        for (p, v) in part.iter_mut().zip(&values[block * BLOCK..]) {
            *p = *v;
        }
        part
    }

    /// What the block, whose weights are `x`, is searched for, in its metric.
    #[inline(always)]
    fn wanted(&self, x: &[f32; BLOCK], block: usize, tables: &BlockTables) -> [f32; BLOCK] {
        let own = times(&Self::part(self.errors, block), &tables.moment);
        let mut others = Self::part(self.images, block);
        for (g, own) in others.iter_mut().zip(own) {
            *g -= own;
        }
        let mut wanted = times(x, &tables.factor);
        for (w, moved) in wanted.iter_mut().zip(times(&others, &tables.inverse)) {
            *w += moved;
        }
        wanted
    }

    /// Takes the winners that begin `found` for `block`, whose weights are `x`, if they come nearer to `wanted` than those it
    /// has: the beam may miss what is there already.
    #[inline(always)]
    fn improve(
        &mut self,
        (stripe, tables): (&Stripe<'_>, &BlockTables),
        (x, wanted): (&[f32; BLOCK], &[f32; BLOCK]),
        block: usize,
        found: &[u8; MAX_SECTIONS],
    ) {
        let sections = stripe.atoms.len() / ATOMS;
        let winners = &mut self.winners[block * sections..][..sections];
        if *winners == found[..sections] {
            return;
        }
        let mut now = sum_atoms(stripe.atoms, &found[..sections]);
        let mut before = sum_atoms(stripe.atoms, winners);
        // Whatever stands for an outlier costs nothing.
        for sum in [&mut now, &mut before] {
            mask(&self.outliers, block, sum);
        }
        if distance(&now, wanted, tables) >= distance(&before, wanted, tables) {
            return;
        }
        winners.copy_from_slice(&found[..sections]);
        let mut changes = [0.0; BLOCK];
        // Inputs that are not there have no errors, and no changes.
        let known = self.errors[block * BLOCK..].iter_mut().zip(x).zip(before.iter().zip(now));
        for (change, ((known, x), (before, now))) in changes.iter_mut().zip(known) {
            *change = before - now;
            if *change != 0.0 {
                *known = x - now;
            }
        }
        stripe.add(self.images, block * BLOCK, &changes);
        let at = (block - stripe.blocks.start) * BLOCK;
        self.changes[at..at + BLOCK].copy_from_slice(&changes);
    }
}

/// |wanted - sum F|^2
#[inline(always)]
fn distance(sum: &[f32; BLOCK], wanted: &[f32; BLOCK], tables: &BlockTables) -> f32 {
    let mut distance = 0.0;
    for (w, s) in wanted.iter().zip(times(sum, &tables.factor)) {
        distance += (w - s) * (w - s);
    }
    distance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_and_their_inverses_belong_together() {
        for n in [1, 5, BLOCK] {
            let mut h = [[0.0f32; BLOCK]; BLOCK];
            for (i, row) in h.iter_mut().enumerate().take(n) {
                (0..n).for_each(|j| row[j] = (-0.4 * i.abs_diff(j) as f32).exp());
            }
            let (f, inverse) = factored(&h, n);
            for i in 0..BLOCK {
                for j in 0..BLOCK {
                    let product: f32 = (0..BLOCK).map(|k| f[i][k] * f[j][k]).sum();
                    assert!((product - h[i][j]).abs() < 1e-6);
                    // (F^-T)^T F = 1
                    let unit: f32 = (0..BLOCK).map(|k| inverse[k][i] * f[k][j]).sum();
                    let expected = f32::from(u8::from(i == j && i < n));
                    assert!((unit - expected).abs() < 1e-5, "{n} {i} {j}: {unit}");
                }
            }
        }
    }
}
