//! Beam search for the winners of one block.
//!
//! The squared distance of a wanted block t to a sum of atoms is a constant plus
//! `sum_s (|c_s|^2 - 2 <t, c_s>) + sum_{s < u} 2 <c_s, c_u>`. The products between atoms are made once
//! per dictionary and metric, so that a further section costs a path one addition of 16 numbers per
//! section before it.

use format::sections::{ATOMS, BLOCK, MAX_SECTIONS};

/// Most partial sums that survive a section.
pub(crate) const MAX_BEAM: usize = 64;

/// A dictionary in the metric of a block.
pub(crate) struct Tables {
    sections: usize,
    /// `[section][input][atom]`: atoms, transposed so that 16 distances are made at once.
    columns: Vec<[f32; ATOMS]>,
    /// `[section][atom]`: squared norms.
    squares: Vec<[f32; ATOMS]>,
    /// `[u][s < u][atom of s][atom of u]`: twice the inner products.
    cross: Vec<[f32; ATOMS]>,
}

/// Paths of a search: winners and costs so far, and the costs of all their continuations.
pub(crate) struct Scratch {
    paths: Vec<[u8; MAX_SECTIONS]>,
    next: Vec<[u8; MAX_SECTIONS]>,
    costs: [f32; MAX_BEAM],
    extended: [[f32; ATOMS]; MAX_BEAM],
}

impl Default for Scratch {
    fn default() -> Self {
        let paths = vec![[0; MAX_SECTIONS]; MAX_BEAM];
        let extended = [[0.0; ATOMS]; MAX_BEAM];
        Self { next: paths.clone(), paths, costs: [0.0; MAX_BEAM], extended }
    }
}

/// A square matrix for one block: row vectors are multiplied from the left, `e -> e F`.
pub(crate) type BlockFactor = [[f32; BLOCK]; BLOCK];

/// The factor of white inputs, of which the first `n` are there.
pub(crate) fn identity(n: usize) -> BlockFactor {
    let mut factor = [[0.0; BLOCK]; BLOCK];
    (0..n).for_each(|i| factor[i][i] = 1.0);
    factor
}

/// `x F`.
#[inline(always)]
pub(crate) fn times(x: &[f32; BLOCK], factor: &BlockFactor) -> [f32; BLOCK] {
    let mut out = [0.0; BLOCK];
    for (x, row) in x.iter().zip(factor) {
        (0..BLOCK).for_each(|i| out[i] += x * row[i]);
    }
    out
}

impl Tables {
    /// Tables for distances `|(x - sum of atoms) F|`.
    pub(crate) fn new(atoms: &[[f32; BLOCK]], factor: &BlockFactor) -> Self {
        let atoms: Vec<[f32; BLOCK]> = atoms.iter().map(|a| times(a, factor)).collect();
        let sections = atoms.len() / ATOMS;
        let column = |s: usize, i: usize| std::array::from_fn(|a| atoms[s * ATOMS + a][i]);
        let columns: Vec<[f32; ATOMS]> = (0..sections)
            .flat_map(|s| (0..BLOCK).map(move |i| (s, i)))
            .map(|(s, i)| column(s, i))
            .collect();
        let product = |atom: &[f32; BLOCK], section: usize| {
            let mut out = [0.0; ATOMS];
            for (x, column) in atom.iter().zip(&columns[section * BLOCK..]) {
                (0..ATOMS).for_each(|a| out[a] += x * column[a]);
            }
            out
        };
        let mut cross = Vec::with_capacity(sections * (sections - 1) / 2 * ATOMS);
        for u in 1..sections {
            cross.extend(atoms[..u * ATOMS].iter().map(|atom| product(atom, u).map(|p| 2.0 * p)));
        }
        let square = |section: &[[f32; BLOCK]]| {
            std::array::from_fn(|a| section[a].iter().map(|v| v * v).sum())
        };
        let squares = atoms.chunks_exact(ATOMS).map(square).collect();
        Self { sections, columns, squares, cross }
    }

    /// Squared norm minus twice the inner product with `wanted`, for all atoms of `section`.
    #[inline(always)]
    fn linear(&self, section: usize, wanted: &[f32; BLOCK]) -> [f32; ATOMS] {
        let mut out = self.squares[section];
        let columns = &self.columns[section * BLOCK..(section + 1) * BLOCK];
        for (t, column) in wanted.iter().zip(columns) {
            let factor = -2.0 * t;
            (0..ATOMS).for_each(|a| out[a] += factor * column[a]);
        }
        out
    }

    /// Writes the winners for `wanted` (already in the metric) to `winners`, `[sections]`.
    ///
    /// Of equal sums the one found from the better path, then the lower atom, wins.
    #[inline(always)]
    pub(crate) fn search(
        &self,
        wanted: &[f32; BLOCK],
        beam: usize,
        scratch: &mut Scratch,
        winners: &mut [u8],
    ) {
        let Scratch { paths, next, costs, extended } = scratch;
        costs[0] = 0.0;
        let mut n = 1;
        for u in 0..self.sections {
            let linear = self.linear(u, wanted);
            let cross = &self.cross[u * u.saturating_sub(1) / 2 * ATOMS..][..u * ATOMS];
            for p in 0..n {
                let mut sums: [f32; ATOMS] = std::array::from_fn(|a| costs[p] + linear[a]);
                for (s, cross) in cross.as_chunks::<ATOMS>().0.iter().enumerate() {
                    let row = &cross[usize::from(paths[p][s]) % ATOMS];
                    (0..ATOMS).for_each(|a| sums[a] += row[a]);
                }
                extended[p] = sums;
            }
            let keep = if u + 1 < self.sections { beam.min(n * ATOMS) } else { 1 };
            select(&mut extended[..n], keep, |rank, parent, atom, cost| {
                next[rank] = paths[parent];
                next[rank][u] = atom as u8;
                costs[rank] = cost;
            });
            std::mem::swap(paths, next);
            n = keep;
        }
        winners.copy_from_slice(&paths[0][..self.sections]);
    }
}

/// Hands the `keep` smallest entries to `take` as (rank, row, column, value), smallest first; entries
/// taken are overwritten.
#[inline(always)]
fn select(rows: &mut [[f32; ATOMS]], keep: usize, mut take: impl FnMut(usize, usize, usize, f32)) {
    let mut minima = [f32::INFINITY; MAX_BEAM];
    for (minimum, row) in minima.iter_mut().zip(rows.iter()) {
        *minimum = smallest(row);
    }
    for rank in 0..keep {
        let mut at = 0;
        for p in 1..rows.len() {
            if minima[p] < minima[at] {
                at = p;
            }
        }
        let row = &mut rows[at];
        let atom = first_equal(row, minima[at]);
        take(rank, at, atom, minima[at]);
        row[atom] = f32::INFINITY;
        minima[at] = smallest(row);
    }
}

/// The first index of `value` in `row`: without an early way out, so that it is a few vector instructions.
#[inline(always)]
fn first_equal(row: &[f32; ATOMS], value: f32) -> usize {
    let mut bits = 0u32;
    for (i, v) in row.iter().enumerate() {
        bits |= u32::from(*v == value) << i;
    }
    bits.trailing_zeros() as usize % ATOMS
}

#[inline(always)]
fn smallest(row: &[f32; ATOMS]) -> f32 {
    let min = |a: f32, b: f32| if a < b { a } else { b };
    let mut half: [f32; 8] = std::array::from_fn(|i| min(row[i], row[i + 8]));
    for width in [4, 2, 1] {
        (0..width).for_each(|i| half[i] = min(half[i], half[i + width]));
    }
    half[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::sum_atoms;
    use numerics::testing::uniform;

    fn atoms(sections: usize) -> Vec<[f32; BLOCK]> {
        let mut random = uniform(9);
        (0..sections * ATOMS).map(|_| std::array::from_fn(|_| random())).collect()
    }

    fn factor() -> BlockFactor {
        let entry = |i: usize, j: usize| match j.cmp(&i) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 1.0 + i as f32 * 0.3,
            std::cmp::Ordering::Greater => 0.1 * (j - i) as f32,
        };
        std::array::from_fn(|i| std::array::from_fn(|j| entry(i, j)))
    }

    fn distance(x: &[f32; BLOCK], atoms: &[[f32; BLOCK]], winners: &[u8], f: &BlockFactor) -> f32 {
        let sum = sum_atoms(atoms, winners);
        times(&std::array::from_fn(|i| x[i] - sum[i]), f).iter().map(|v| v * v).sum()
    }

    #[test]
    fn a_wide_beam_over_two_sections_is_exhaustive() {
        let (atoms, factor) = (atoms(2), factor());
        let tables = Tables::new(&atoms, &factor);
        for wanted in &self::atoms(6)[32..] {
            let x = wanted.map(|v| 2.0 * v);
            let mut winners = [0; 2];
            tables.search(&times(&x, &factor), 16, &mut Scratch::default(), &mut winners);
            let found = distance(&x, &atoms, &winners, &factor);
            for a in 0..ATOMS as u8 {
                for b in 0..ATOMS as u8 {
                    assert!(found <= distance(&x, &atoms, &[a, b], &factor) + 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_wider_beam_is_better_on_average() {
        let (atoms, factor) = (atoms(5), factor());
        let tables = Tables::new(&atoms, &factor);
        let mut last = f32::INFINITY;
        for beam in [1, 2, 4, 8, 16, 64] {
            let mut total = 0.0;
            for wanted in &self::atoms(8)[80..] {
                let x = wanted.map(|v| 2.0 * v);
                let mut winners = [0; 5];
                tables.search(&times(&x, &factor), beam, &mut Scratch::default(), &mut winners);
                total += distance(&x, &atoms, &winners, &factor);
            }
            assert!(total <= last, "beam {beam}: {total} after {last}");
            last = total;
        }
    }

    #[test]
    fn equal_atoms_resolve_to_the_lowest() {
        let atoms = vec![[0.5; BLOCK]; 3 * ATOMS];
        let factor = identity(BLOCK);
        let mut winners = [7; 3];
        Tables::new(&atoms, &factor).search(
            &[1.0; BLOCK],
            8,
            &mut Scratch::default(),
            &mut winners,
        );
        assert_eq!(winners, [0, 0, 0]);
    }
}
