//! What every form of the lookup works on: some groups of a bundle, and the totals of its rows.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::ops::Range;

use super::bundles::Bundle;
use super::matrix::SectionMatrix;
use super::shape::PAIR_BYTES;
use super::tables::Tables;
use crate::common::finite_f16;
use crate::{Output, ROW_TILE};

/// How far ahead codes are prefetched into the first-level cache, per stream of tiles: about what memory delivers
/// in one access time. Necessary because the hardware's own prefetch stops at each 4 KiB page.
const NEAR_BYTES: usize = 1024;
/// The same into the second-level cache. Zen 4 reads the codes of one token 1.12 to 1.16 times as fast so, from any
/// distance between 4 and 16 KiB; its first level has too few fills under way for what memory delivers.
const FAR_BYTES: usize = 4096;

/// A way to look up all rows of a thread in the tables of one bundle.
///
/// # Safety
/// The machine has the instructions, and the panel's tables are laid out for its matrix.
pub(super) trait Form {
    /// Tiles that a vector of sums spans.
    const TILES: usize;
    /// Whether codes are prefetched from far, into the second-level cache.
    const FAR: bool;
    unsafe fn bundle(panel: &Panel<'_>, y: &mut Output<'_>);
}

/// Some groups of one bundle: what all tiles of a pass have in common.
pub(super) struct Panel<'a> {
    pub matrix: &'a SectionMatrix<'a>,
    pub tables: Tables<'a>,
    pub bundle: Bundle,
    pub groups: Range<usize>,
}

impl Panel<'_> {
    /// Bytes of a tile's codes.
    pub(super) fn tile_bytes(&self) -> usize {
        self.tables.layout().grid.n_units * PAIR_BYTES
    }

    /// How many bytes ahead of the codes of `pair` to prefetch for strips of `n_tiles` tiles: past the end of
    /// the panel these streams go on with other tiles.
    pub(super) fn ahead<F: Form>(&self, pair: usize, n_tiles: usize) -> usize {
        let ahead = if F::FAR { FAR_BYTES } else { NEAR_BYTES };
        let grid = self.tables.layout().grid;
        let end = grid.units(self.groups.end - 1).end * PAIR_BYTES;
        if pair * PAIR_BYTES + ahead < end {
            return ahead;
        }
        let panel_bytes = end - grid.units(self.groups.start).start * PAIR_BYTES;
        ahead + n_tiles * self.tile_bytes() - panel_bytes
    }
}

/// Totals of a vector's rows for one token.
pub(super) type Totals = [f32; 2 * ROW_TILE];

/// The rows of one tile and where they are in the totals: [vector], [row in vector].
#[inline(always)]
fn tile_rows<F: Form>(first: usize, i: usize, y: &Output<'_>) -> (Range<usize>, usize, usize) {
    let begin = (first + i) * ROW_TILE;
    (begin..y.rows().end.min(begin + ROW_TILE), i / F::TILES, i % F::TILES * ROW_TILE)
}

/// Fetches the totals of the panels before this one.
#[inline(always)]
pub(super) fn load_totals<F: Form, const C: usize, const N: usize>(
    panel: &Panel<'_>,
    first: usize,
    n_tiles: usize,
    y: &mut Output<'_>,
    totals: &mut [[Totals; C]; N],
) {
    let parts = panel.tables.layout().entry.parts();
    for i in 0..n_tiles {
        let (rows, n, at) = tile_rows::<F>(first, i, y);
        for j in 0..C / parts {
            let from = y.token_rows(panel.bundle.first / parts + j, rows.clone());
            totals[n][j][at..at + from.len()].copy_from_slice(from);
        }
    }
}

/// Writes totals, after the last panel times the scales of the rows.
#[inline(always)]
pub(super) fn store_totals<F: Form, const C: usize, const N: usize>(
    panel: &Panel<'_>,
    first: usize,
    n_tiles: usize,
    y: &mut Output<'_>,
    totals: &[[Totals; C]; N],
) {
    let parts = panel.tables.layout().entry.parts();
    let last = panel.groups.end == panel.tables.layout().grid.n_groups;
    for i in 0..n_tiles {
        let (rows, n, at) = tile_rows::<F>(first, i, y);
        let scales = &panel.matrix.row_scale[rows.clone()];
        for j in 0..C / parts {
            let to = y.token_rows(panel.bundle.first / parts + j, rows.clone());
            let from = &totals[n][j][at..at + to.len()];
            if last {
                for ((to, from), &scale) in to.iter_mut().zip(from).zip(scales) {
                    *to = from * finite_f16(scale);
                }
            } else {
                to.copy_from_slice(from);
            }
        }
    }
}
