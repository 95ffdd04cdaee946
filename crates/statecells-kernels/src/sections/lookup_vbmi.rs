//! Lookups with AVX-512 VBMI and VNNI: four planes of 16 rows at a time.
//!
//! A byte shuffle over all 64 bytes of a vector looks up four tables at once: the codes of a row lie side by
//! side, each with the number of its table in the bits above the code, and one instruction adds the four
//! entries to the row's 32-bit sum. That is half the instructions per entry of the other forms, whose sums of
//! 16 bits need three for what is one here.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::arch::x86_64::*;

use super::lookup::Shuffles;
use super::panel::{Form, Panel, Totals, load_totals, store_totals};
use super::shape::{BIAS, PAIR_BYTES};
use crate::simd::Lookup;
use crate::simd::avx512::Avx512;
use crate::{Output, ROW_TILE};

/// Name of the form.
pub(super) struct Vbmi;

/// Rows of a vector of sums.
const LANES: usize = 16;
/// Vectors of sums of two tiles.
const VECTORS: usize = 2 * ROW_TILE / LANES;
/// Places in two pairs of planes, for each of the first rows: its byte of the first pair twice, then that of the second.
const FIRST_ROWS: [u8; 4 * LANES] = {
    let mut places = [0; 4 * LANES];
    let mut i = 0;
    while i < places.len() {
        places[i] = (i / 4 + i % 4 / 2 * PAIR_BYTES) as u8;
        i += 1;
    }
    places
};

impl Form for Vbmi {
    const TILES: usize = 2;
    const FAR: bool = Avx512::FAR;

    #[inline(always)]
    unsafe fn bundle(panel: &Panel<'_>, y: &mut Output<'_>) {
        if panel.bundle.width == 1 {
            // SAFETY: the caller's promise; sets with VBMI have the other instructions.
            return unsafe { Shuffles::<Avx512>::bundle(panel, y) };
        }
        let tiles = y.tiles();
        for first in tiles.clone().step_by(Self::TILES) {
            let n_tiles = Self::TILES.min(tiles.end - first);
            // SAFETY: the caller's promise; the tiles are those of the matrix, whose rows are y's.
            unsafe {
                match panel.bundle.width {
                    2 => strip::<2>(panel, first, n_tiles, y),
                    3 => strip::<3>(panel, first, n_tiles, y),
                    _ => strip::<4>(panel, first, n_tiles, y),
                }
            }
        }
    }
}

/// Two tiles from `first` on, of which `n_tiles` exist.
///
/// # Safety
/// As for [`Form`]; the bundle has `C` columns and at least the first tile exists.
#[inline(always)]
unsafe fn strip<const C: usize>(
    panel: &Panel<'_>,
    first: usize,
    n_tiles: usize,
    y: &mut Output<'_>,
) {
    let (tables, layout) = (panel.tables, panel.tables.layout());
    let mut totals: [[Totals; C]; 1] = [[[0.0; 2 * ROW_TILE]; C]];
    if panel.groups.start > 0 {
        load_totals::<Vbmi, C, 1>(panel, first, n_tiles, y, &mut totals);
    }
    // SAFETY: the instructions are the caller's promise. Codes are tile_bytes per tile (the matrix was checked,
    // and the layout is for it); of a tile that does not exist the first one is read again. Entries of a
    // bundle are `C` times 32 bytes per pair.
    unsafe {
        let codes = [0, n_tiles - 1]
            .map(|i| panel.matrix.codes.as_ptr().add((first + i) * panel.tile_bytes()));
        for g in panel.groups.clone() {
            let pairs = layout.grid.units(g);
            let bias = -BIAS * 2 * pairs.len() as i32;
            let mut sums = [[_mm512_set1_epi32(bias); C]; VECTORS];
            let mut entries = tables.entries(panel.bundle, pairs.clone()).as_ptr();
            let ahead = panel.ahead::<Vbmi>(pairs.start, Vbmi::TILES);
            let mut pair = pairs.start;
            while pair + 2 <= pairs.end {
                let at = codes.map(|codes| codes.add(pair * PAIR_BYTES));
                for at in at {
                    Avx512::prefetch(at.wrapping_add(ahead));
                }
                let index = indexes(at, true);
                for q in 0..C {
                    let table = entries.add(q * PAIR_BYTES);
                    let low = _mm512_castsi256_si512(_mm256_loadu_si256(table.cast()));
                    let high = _mm256_loadu_si256(table.add(C * PAIR_BYTES).cast());
                    let table = _mm512_inserti64x4::<1>(low, high);
                    for v in 0..VECTORS {
                        sums[v][q] = look_up(sums[v][q], table, index[v]);
                    }
                }
                entries = entries.add(2 * C * PAIR_BYTES);
                pair += 2;
            }
            if pair < pairs.end {
                // Zeros instead of the entries of a pair that does not exist.
                let index = indexes(codes.map(|codes| codes.add(pair * PAIR_BYTES)), false);
                for q in 0..C {
                    let table = _mm256_loadu_si256(entries.add(q * PAIR_BYTES).cast());
                    let table = _mm512_zextsi256_si512(table);
                    for v in 0..VECTORS {
                        sums[v][q] = look_up(sums[v][q], table, index[v]);
                    }
                }
            }
            for q in 0..C {
                let scale = _mm512_set1_ps(tables.scale(panel.bundle, g, q));
                let total = totals[0][q / layout.entry.parts()].as_mut_ptr();
                for v in 0..VECTORS {
                    let total = total.add(v * LANES);
                    let sums = _mm512_cvtepi32_ps(sums[v][q]);
                    _mm512_storeu_ps(total, _mm512_fmadd_ps(scale, sums, _mm512_loadu_ps(total)));
                }
            }
        }
    }
    store_totals::<Vbmi, C, 1>(panel, first, n_tiles, y, &totals);
}

/// Where the rows of two tiles find their entries of four planes, the first of which have their codes at
/// `codes`. Only the first two planes count without `both`.
///
/// # Safety
/// The machine has the instructions; one pair of planes, or two if `both`, can be read at each of `codes`.
#[inline(always)]
unsafe fn indexes(codes: [*const u8; 2], both: bool) -> [__m512i; VECTORS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut planes = [_mm512_setzero_si512(); 2];
        for tile in 0..2 {
            planes[tile] = match both {
                true => _mm512_loadu_si512(codes[tile].cast()),
                false => _mm512_zextsi256_si512(_mm256_loadu_si256(codes[tile].cast())),
            };
        }
        let first_rows = _mm512_loadu_si512(FIRST_ROWS.as_ptr().cast());
        // Eight bits from these places of every 64: a byte, or what lies behind its lower nibble.
        let places = _mm512_set1_epi64(i64::from_le_bytes([0, 12, 16, 28, 32, 44, 48, 60]));
        let mut index = [_mm512_setzero_si512(); VECTORS];
        for v in 0..VECTORS {
            let rows = _mm512_add_epi8(first_rows, _mm512_set1_epi8((v % 2 * LANES) as i8));
            let pairs = _mm512_permutexvar_epi8(rows, planes[v / 2]);
            let nibbles = _mm512_multishift_epi64_epi8(places, pairs);
            // (nibbles & 15) | number of the table.
            let (code, table) = (_mm512_set1_epi8(15), _mm512_set1_epi32(0x3020_1000));
            index[v] = _mm512_ternarylogic_epi32::<0xea>(nibbles, code, table);
        }
        index
    }
}

/// Adds four entries of each row.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn look_up(sums: __m512i, table: __m512i, index: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let entries = _mm512_permutexvar_epi8(index, table);
        _mm512_dpbusd_epi32(sums, entries, _mm512_set1_epi8(1))
    }
}
