//! Beam search for the winners of one block.
//!
//! The squared distance of a wanted block t to a sum of atoms is a constant plus
//! `sum_s (|c_s|^2 - 2 <t, c_s>) + sum_{s < u} 2 <c_s, c_u>`. The products between atoms are made once
//! per dictionary and metric, so that a further section costs a path one addition of 16 numbers per
//! section before it. Every lane of a vector searches for a block of its own.

use std::ops::Range;

use format::sections::{ATOMS, BLOCK, MAX_SECTIONS};
use pulp::Simd;

use crate::smallest;

/// Most partial sums that survive a section.
pub(crate) const MAX_BEAM: usize = 64;

/// A dictionary in the metric of a block.
pub(crate) struct Tables {
    sections: usize,
    /// `[section][input][atom]`: atoms, transposed.
    columns: Vec<[f32; ATOMS]>,
    /// `[section][atom]`: squared norms.
    squares: Vec<[f32; ATOMS]>,
    /// `[u][s < u][atom of s][atom of u]`: twice the inner products.
    cross: Vec<[f32; ATOMS]>,
}

/// Vectors have no more lanes than this.
pub(crate) const MAX_LANES: usize = 16;

/// Paths whose products are made together: they stay in the first-level cache until they are used.
const PATHS: usize = 8;
/// Lanes whose products are made together and written side by side.
const QUAD: usize = 4;

/// Paths of a search: their winners, and the products that wait for the next section.
pub(crate) struct Scratch {
    /// Of every lane, [`MAX_BEAM`] each.
    paths: Vec<[u8; MAX_SECTIONS]>,
    next: Vec<[u8; MAX_SECTIONS]>,
    /// Of some paths, `[path][atom][lane]`.
    products: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        let paths = vec![[0; MAX_SECTIONS]; MAX_LANES * MAX_BEAM];
        Self { next: paths.clone(), paths, products: vec![0.0; PATHS * ATOMS * MAX_LANES] }
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

    /// Searches the winners for each of `wanted` (already in the metric), one for every lane at most;
    /// [`Scratch::winners`] has them then.
    ///
    /// Costs are compared without their last bits, which tell the path: of costs that are equal but for these the one found
    /// from the better path, then the lower atom, wins.
    ///
    /// # Panics
    /// If more are wanted than a vector has lanes.
    #[inline(always)]
    pub(crate) fn search<S: Simd>(
        &self,
        simd: S,
        wanted: &[[f32; BLOCK]],
        beam: usize,
        scratch: &mut Scratch,
    ) {
        match beam {
            0..=8 => self.search_among::<S, 8>(simd, wanted, beam, scratch),
            9..=16 => self.search_among::<S, 16>(simd, wanted, beam, scratch),
            17..=32 => self.search_among::<S, 32>(simd, wanted, beam, scratch),
            _ => self.search_among::<S, MAX_BEAM>(simd, wanted, beam, scratch),
        }
    }

    /// The same; `beam` is at most `N`. Without closures, which would be compiled without the machine's instructions.
    #[inline(always)]
    fn search_among<S: Simd, const N: usize>(
        &self,
        simd: S,
        wanted: &[[f32; BLOCK]],
        beam: usize,
        scratch: &mut Scratch,
    ) {
        assert!(wanted.len() <= S::F32_LANES && S::F32_LANES <= MAX_LANES);
        let mut costs = [simd.splat_f32s(0.0); N];
        let mut factors = [simd.splat_f32s(0.0); BLOCK];
        for (i, factor) in factors.iter_mut().enumerate() {
            let x = lanes::<S>(wanted, i);
            costs[0] = simd.add_f32s(costs[0], simd.mul_f32s(x, x));
            *factor = simd.mul_f32s(simd.splat_f32s(-2.0), x);
        }
        let path_bits = simd.splat_u32s((N * ATOMS - 1) as u32);
        let cost_bits = simd.splat_u32s(!((N * ATOMS - 1) as u32));
        let mut n = 1;
        for u in 0..self.sections {
            let linear = self.linear(simd, u, &factors);
            let keep = if u + 1 < self.sections { beam.min(n * ATOMS) } else { 1 };
            let mut top = [simd.splat_u32s(u32::MAX); N];
            for (p, of_path) in costs.iter().copied().enumerate().take(n) {
                if p.is_multiple_of(PATHS) {
                    self.sum_products::<S>(u, wanted.len(), p..n.min(p + PATHS), scratch);
                }
                let (products, _) = S::as_simd_f32s(&scratch.products);
                let products = &products.as_chunks::<ATOMS>().0[p % PATHS];
                let mut group = [simd.splat_u32s(0); ATOMS];
                for a in 0..ATOMS {
                    let mut cost = simd.add_f32s(of_path, linear[a]);
                    if u > 0 {
                        cost = simd.add_f32s(cost, products[a]);
                    }
                    // Bits of numbers that are not negative are in the order of the numbers.
                    let cost = simd.max_f32s(cost, simd.splat_f32s(0.0));
                    let cost = simd.and_u32s(simd.transmute_u32s_f32s(cost), cost_bits);
                    group[a] = simd.or_u32s(cost, simd.splat_u32s((p * ATOMS + a) as u32));
                }
                if keep == 1 {
                    for v in group {
                        top[0] = simd.min_u32s(top[0], v);
                    }
                } else {
                    smallest::merge(simd, &mut top, &mut group);
                }
            }
            for rank in 0..keep {
                costs[rank] = simd.transmute_f32s_u32s(simd.and_u32s(top[rank], cost_bits));
                scratch.extend::<S>(simd.and_u32s(top[rank], path_bits), wanted.len(), rank, u);
            }
            std::mem::swap(&mut scratch.paths, &mut scratch.next);
            n = keep;
        }
    }

    /// Squared norm minus twice the inner product with what is wanted, for all atoms of `section`; `factors` are -2 times
    /// the inputs.
    #[inline(always)]
    fn linear<S: Simd>(
        &self,
        simd: S,
        section: usize,
        factors: &[S::f32s; BLOCK],
    ) -> [S::f32s; ATOMS] {
        let mut sums = [simd.splat_f32s(0.0); ATOMS];
        for (sum, square) in sums.iter_mut().zip(&self.squares[section]) {
            *sum = simd.splat_f32s(*square);
        }
        let columns = &self.columns[section * BLOCK..(section + 1) * BLOCK];
        for (factor, column) in factors.iter().zip(columns) {
            for (sum, c) in sums.iter_mut().zip(column) {
                *sum = simd.add_f32s(*sum, simd.mul_f32s(*factor, simd.splat_f32s(*c)));
            }
        }
        sums
    }

    /// Twice the inner products of all atoms of section `u` with what `paths` of the first `n_wanted` lanes stand for, to
    /// `scratch`.
    #[inline(always)]
    fn sum_products<S: Simd>(
        &self,
        u: usize,
        n_wanted: usize,
        paths: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let cross = &self.cross[u * u.saturating_sub(1) / 2 * ATOMS..][..u * ATOMS];
        let Some((first, others)) = cross.as_chunks::<ATOMS>().0.split_first() else { return };
        let of_paths = scratch.products.chunks_exact_mut(ATOMS * S::F32_LANES);
        for (path, products) in paths.zip(of_paths) {
            // Paths of lanes that nothing is wanted of are those of an earlier search.
            for lane in (0..n_wanted).step_by(QUAD) {
                let mut sums = [[0.0; ATOMS]; QUAD];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let path = &scratch.paths[(lane + i) * MAX_BEAM + path];
                    *sums = first[usize::from(path[0]) % ATOMS];
                    for (cross, winner) in others.iter().zip(&path[1..]) {
                        let row = &cross[usize::from(*winner) % ATOMS];
                        for (sum, v) in sums.iter_mut().zip(row) {
                            *sum += v;
                        }
                    }
                }
                let lanes = products.chunks_exact_mut(S::F32_LANES);
                for (a, products) in lanes.enumerate() {
                    if let Some(products) = products[lane..].first_chunk_mut::<QUAD>() {
                        *products = [sums[0][a], sums[1][a], sums[2][a], sums[3][a]];
                    } else {
                        products[lane] = sums[0][a];
                    }
                }
            }
        }
    }
}

impl Scratch {
    /// Of the last search, for what was wanted in lane `lane`; the winners of the sections are the first.
    #[inline(always)]
    pub(crate) fn winners(&self, lane: usize) -> &[u8; MAX_SECTIONS] {
        &self.paths[lane * MAX_BEAM]
    }

    /// Makes path `rank` of the first `n_wanted` lanes the one that `found` tells, with its atom for section `u`.
    #[inline(always)]
    fn extend<S: Simd>(&mut self, found: S::u32s, n_wanted: usize, rank: usize, u: usize) {
        let mut places = [0u32; MAX_LANES];
        S::as_mut_simd_u32s(&mut places[..S::F32_LANES]).0[0] = found;
        for (lane, place) in places.iter().enumerate().take(n_wanted) {
            let (parent, atom) = (*place as usize / ATOMS, *place as usize % ATOMS);
            let path = &mut self.next[lane * MAX_BEAM + rank];
            *path = self.paths[lane * MAX_BEAM + parent];
            path[u] = atom as u8;
        }
    }
}

/// Input `i` of `wanted`, one in every lane.
#[inline(always)]
fn lanes<S: Simd>(wanted: &[[f32; BLOCK]], i: usize) -> S::f32s {
    let mut values = [0.0; MAX_LANES];
    for (v, x) in values.iter_mut().zip(wanted) {
        *v = x[i];
    }
    S::as_simd_f32s(&values[..S::F32_LANES]).0[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::sum_atoms;
    use numerics::testing::uniform;
    use pulp::WithSimd;

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

    /// A search for each of `wanted`, in the metric already: the winners of all, one after the other.
    #[derive(Clone, Copy)]
    struct Run<'a> {
        tables: &'a Tables,
        wanted: &'a [[f32; BLOCK]],
        beam: usize,
    }

    impl WithSimd for Run<'_> {
        type Output = Vec<u8>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<u8> {
            let Self { tables, wanted, beam } = self;
            let mut scratch = Scratch::default();
            let mut winners = vec![];
            for wanted in wanted.chunks(S::F32_LANES) {
                tables.search(simd, wanted, beam, &mut scratch);
                for lane in 0..wanted.len() {
                    winners.extend(&scratch.winners(lane)[..tables.sections]);
                }
            }
            winners
        }
    }

    /// The same by one lane and by all that this machine has.
    fn found(tables: &Tables, wanted: &[[f32; BLOCK]], beam: usize) -> Vec<u8> {
        let run = Run { tables, wanted, beam };
        let winners = run.with_simd(pulp::Scalar::new());
        assert_eq!(winners, pulp::Arch::new().dispatch(run), "beam {beam}");
        winners
    }

    #[test]
    fn a_wide_beam_over_two_sections_is_exhaustive() {
        let (atoms, factor) = (atoms(2), factor());
        let tables = Tables::new(&atoms, &factor);
        let wanted: Vec<_> = self::atoms(6)[32..].iter().map(|x| x.map(|v| 2.0 * v)).collect();
        let projected: Vec<_> = wanted.iter().map(|x| times(x, &factor)).collect();
        let winners = found(&tables, &projected, 16);
        for (x, winners) in wanted.iter().zip(winners.chunks_exact(2)) {
            let distance = |winners: &[u8]| distance(x, &atoms, winners, &factor);
            for a in 0..ATOMS as u8 {
                for b in 0..ATOMS as u8 {
                    assert!(distance(winners) <= 1.0001 * distance(&[a, b]));
                }
            }
        }
    }

    #[test]
    fn a_wider_beam_is_better_on_average() {
        let (atoms, factor) = (atoms(5), factor());
        let tables = Tables::new(&atoms, &factor);
        // Not a multiple of any number of lanes.
        let wanted: Vec<_> = self::atoms(8)[80..127].iter().map(|x| x.map(|v| 2.0 * v)).collect();
        let projected: Vec<_> = wanted.iter().map(|x| times(x, &factor)).collect();
        let mut last = f32::INFINITY;
        for beam in [1, 2, 4, 8, 16, 32, MAX_BEAM] {
            let winners = found(&tables, &projected, beam);
            let distance = |(x, winners)| distance(x, &atoms, winners, &factor);
            let total = wanted.iter().zip(winners.chunks_exact(5)).map(distance).sum();
            assert!(total <= last, "beam {beam}: {total} after {last}");
            last = total;
        }
    }

    #[test]
    fn equal_atoms_resolve_to_the_lowest() {
        let atoms = vec![[0.5; BLOCK]; 3 * ATOMS];
        let factor = identity(BLOCK);
        let tables = Tables::new(&atoms, &factor);
        assert_eq!(found(&tables, &[[1.0; BLOCK]], 8), [0, 0, 0]);
    }

    #[test]
    fn numbers_that_are_none_find_winners_too() {
        let (atoms, factor) = (atoms(3), factor());
        let tables = Tables::new(&atoms, &factor);
        for wanted in [f32::NAN, f32::INFINITY, f32::MAX] {
            let winners = found(&tables, &[[wanted; BLOCK]; 3], 8);
            assert!(winners.iter().all(|w| usize::from(*w) < ATOMS));
        }
    }
}
