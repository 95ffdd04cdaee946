//! The lookup: integer sums of table entries, 32 or 64 rows at a time.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::marker::PhantomData;
use std::ops::Range;

use super::bundles::Bundle;
use super::matrix::SectionMatrix;
use super::panel::{Form, Panel, load_totals, store_totals};
use super::shape::{ATOMS, BIAS, PAIR_BYTES};
use super::tables::Tables;
use crate::simd::Lookup;
use crate::{Output, ROW_TILE};

/// Pairs of planes whose tables for a full bundle (96 KiB) stay in the second-level cache while the
/// tiles pass by; smaller panels would fit the first level, but reload the totals more often, which
/// costs more. Only used for several bundles; one alone reads the codes faster in one go.
const PANEL_PAIRS: usize = 768;
/// The definition: reference for the fast forms.
pub(super) fn scalar(matrix: &SectionMatrix<'_>, tables: Tables<'_>, y: &mut Output<'_>) {
    let (grid, n_columns) = (tables.layout().grid, tables.n_columns());
    let parts = n_columns / tables.n_tokens().max(1);
    for column in (0..n_columns).step_by(parts.max(1)) {
        let bundle = grid.bundle(n_columns, column / grid.width);
        let rows = y.rows();
        for (out, r) in y.token_rows(column / parts, rows.clone()).iter_mut().zip(rows) {
            let mut total = 0.0f32;
            for g in 0..grid.n_groups {
                for column in column - bundle.first..column - bundle.first + parts {
                    let sum = group_sum(matrix, tables, bundle, g, column, r);
                    total = tables.scale(bundle, g, column).mul_add(sum as f32, total);
                }
            }
            *out = total * matrix.row_scale[r].to_f32();
        }
    }
}

/// Sum of the entries that row `r` names in group `g`, in one column of a bundle.
fn group_sum(
    matrix: &SectionMatrix<'_>,
    tables: Tables<'_>,
    bundle: Bundle,
    g: usize,
    column: usize,
    r: usize,
) -> i32 {
    let pairs = tables.layout().grid.units(g);
    let entries = tables.entries(bundle, pairs.clone());
    let tile = r / ROW_TILE * tables.layout().grid.n_units;
    let mut sum = 0;
    for (i, pair) in pairs.enumerate() {
        let code = usize::from(matrix.codes[(tile + pair) * PAIR_BYTES + r % ROW_TILE]);
        let table = &entries[(i * bundle.width + column) * PAIR_BYTES..][..PAIR_BYTES];
        sum += i32::from(table[code & 15]) - BIAS;
        sum += i32::from(table[ATOMS + (code >> 4)]) - BIAS;
    }
    sum
}

macro_rules! compiled {
    ($name:ident, $set:ty, $arch:literal, $features:literal) => {
        /// # Safety
        /// The machine has the instructions.
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(m: &SectionMatrix<'_>, tables: Tables<'_>, y: &mut Output<'_>) {
            // SAFETY: the caller's promise.
            unsafe { product::<$set>(m, tables, y) }
        }
    };
}

/// Lookups of one section at a time in vectors of rows.
pub(super) struct Shuffles<L>(PhantomData<L>);

compiled!(avx2, Shuffles<crate::simd::avx2::Avx2>, "x86_64", "avx2,fma");
compiled!(
    avx512,
    Shuffles<crate::simd::avx512::Avx512>,
    "x86_64",
    "avx512f,avx512bw,avx512vl,avx2,fma"
);
compiled!(
    avx512_vbmi,
    super::lookup_vbmi::Vbmi,
    "x86_64",
    "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx2,fma"
);
compiled!(neon, Shuffles<crate::simd::neon::Neon>, "aarch64", "neon");

/// # Safety
/// The machine has the instructions of `F`, and `tables` are laid out for the matrix.
#[inline(always)]
unsafe fn product<F: Form>(matrix: &SectionMatrix<'_>, tables: Tables<'_>, y: &mut Output<'_>) {
    let (grid, n_columns) = (tables.layout().grid, tables.n_columns());
    let n_bundles = grid.n_bundles(n_columns);
    let panel_groups =
        if n_bundles > 1 { (PANEL_PAIRS / grid.group_units).max(1) } else { grid.n_groups };
    // All columns pass over a panel of codes before the next panel: it comes from memory once.
    for begin in (0..grid.n_groups).step_by(panel_groups) {
        let groups = begin..grid.n_groups.min(begin + panel_groups);
        for index in 0..n_bundles {
            let bundle = grid.bundle(n_columns, index);
            let panel = Panel { matrix, tables, bundle, groups: groups.clone() };
            // SAFETY: the caller's promise.
            unsafe { F::bundle(&panel, y) };
        }
    }
}

impl<L: Lookup> Form for Shuffles<L> {
    const TILES: usize = L::TILES;
    const FAR: bool = L::FAR;

    #[inline(always)]
    unsafe fn bundle(panel: &Panel<'_>, y: &mut Output<'_>) {
        // SAFETY: the caller's promise. Tiles side by side share the loads of tables; as many as leave
        // sums, indexes and tables in registers.
        unsafe {
            match panel.bundle.width {
                1 => strips::<L, 1, 4>(panel, y),
                2 => strips::<L, 2, 2>(panel, y),
                3 => strips::<L, 3, 1>(panel, y),
                _ => strips::<L, 4, 1>(panel, y),
            }
        }
    }
}

/// All this thread's tiles: `N` vectors of tiles at a time, then one at a time.
///
/// # Safety
/// As [`product`], and the bundle has `C` columns.
#[inline(always)]
unsafe fn strips<L: Lookup, const C: usize, const N: usize>(panel: &Panel<'_>, y: &mut Output<'_>) {
    let Range { start: mut tile, end } = y.tiles();
    // SAFETY: the caller's promise; the tiles are those of the matrix, whose rows are y's.
    unsafe {
        while tile + N * L::TILES <= end {
            strip::<L, C, N>(panel, tile, N * L::TILES, y);
            tile += N * L::TILES;
        }
        while tile < end {
            strip::<L, C, 1>(panel, tile, L::TILES.min(end - tile), y);
            tile += L::TILES;
        }
    }
}

/// `N` vectors of tiles from `first` on, of which `n_tiles` exist.
///
/// # Safety
/// As [`strips`]; at least the first tile exists.
#[inline(always)]
unsafe fn strip<L: Lookup, const C: usize, const N: usize>(
    panel: &Panel<'_>,
    first: usize,
    n_tiles: usize,
    y: &mut Output<'_>,
) {
    let (tables, layout) = (panel.tables, panel.tables.layout());
    let tile_bytes = panel.tile_bytes();
    let mut totals = [[[0.0; 2 * ROW_TILE]; C]; N];
    if panel.groups.start > 0 {
        load_totals::<Shuffles<L>, C, N>(panel, first, n_tiles, y, &mut totals);
    }
    // SAFETY: the instructions are the caller's promise. Codes are n_units * PAIR_BYTES per tile (the
    // matrix was checked, and the layout is for it); of tiles that do not exist the last one that does
    // is read again. Entries of a bundle are `C` times 32 bytes per pair.
    unsafe {
        let mut codes = [[std::ptr::null::<u8>(); 2]; N];
        for n in 0..N {
            for i in 0..2 {
                let tile = first + (n * L::TILES + i).min(n_tiles - 1);
                codes[n][i] = panel.matrix.codes.as_ptr().add(tile * tile_bytes);
            }
        }
        for g in panel.groups.clone() {
            let pairs = layout.grid.units(g);
            let mut sums = [[L::sums(2 * pairs.len()); C]; N];
            let mut entries = tables.entries(panel.bundle, pairs.clone()).as_ptr();
            let ahead = panel.ahead::<Shuffles<L>>(pairs.start, N * L::TILES);
            for at in pairs.map(|pair| pair * PAIR_BYTES) {
                let mut index = [[L::table(entries); 2]; N];
                for n in 0..N {
                    let [a, b] = [codes[n][0].add(at), codes[n][1].add(at)];
                    L::prefetch(a.wrapping_add(ahead));
                    if L::TILES > 1 {
                        L::prefetch(b.wrapping_add(ahead));
                    }
                    let both = L::codes(a, b);
                    index[n] = [L::low(both), L::high(both)];
                }
                for q in 0..C {
                    let even = L::table(entries);
                    let odd = L::table(entries.add(ATOMS));
                    entries = entries.add(PAIR_BYTES);
                    for n in 0..N {
                        sums[n][q] = L::add(sums[n][q], L::look_up(even, index[n][0]));
                        sums[n][q] = L::add(sums[n][q], L::look_up(odd, index[n][1]));
                    }
                }
            }
            for q in 0..C {
                let scale = tables.scale(panel.bundle, g, q);
                for n in 0..N {
                    let total = &mut totals[n][q / layout.entry.parts()];
                    L::flush(sums[n][q], scale, total.as_mut_ptr());
                }
            }
        }
    }
    store_totals::<Shuffles<L>, C, N>(panel, first, n_tiles, y, &totals);
}
