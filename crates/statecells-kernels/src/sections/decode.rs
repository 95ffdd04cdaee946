//! The product for batches: some rows and inputs of the matrix are decoded to bytes once and multiplied
//! with the rounded inputs of all tokens.
//!
//! `y[r, t] = row_scale[r] * sum_spans (scale[span, t] * sum_{inputs of span} weight[r, i] * rounded[i, t]
//!                                     + weight[r, place[span, t]] * kept[span, t])`
//!
//! The inner sum is an exact integer sum, the outer one runs over the spans in order by fused
//! multiply-add. All forms give the same bits.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::ops::Range;
use std::sync::Arc;

use super::bundles::Bundle;
use super::cache::TileBytes;
use super::decoder::Decoder;
use super::inputs::{Inputs, SPAN, SPAN_WORDS, Scale, TOKENS, WORD};
use super::matrix::SectionMatrix;
use super::shape::{BLOCK, PAIR_BYTES, SectionShape};
use crate::common::finite_f16;
use crate::simd::{Dot, Floats};
use crate::{Output, ROW_TILE, Scratch};

/// Tiles of codes that are decoded together, and their rows.
const PANEL_TILES: usize = 2;
const PANEL_ROWS: usize = PANEL_TILES * ROW_TILE;
/// Most spans that are decoded together. Every pass over some spans reads and writes all results so far, so few
/// passes are fast: with 1024 inputs a pass 512 tokens took 1.1 times as long (Zen 4). The bytes of a panel
/// (256 KiB) stay in the second-level cache.
const PANEL_SPANS: usize = 4096 / SPAN;

/// The definition: reference for the fast forms.
pub(super) fn scalar(
    matrix: &SectionMatrix<'_>,
    decoder: &Decoder,
    inputs: Inputs<'_>,
    y: &mut Output<'_>,
) {
    let (grid, n_tokens) = (inputs.layout().grid, inputs.n_tokens());
    let rows = y.rows();
    for r in rows.clone() {
        let blocks = 0..matrix.shape.n_blocks();
        let weights: Vec<i32> = blocks
            .flat_map(|block| {
                let codes = move |section| matrix.code(r, block, section);
                let sections = 0..decoder.n_sections();
                (0..BLOCK).map(move |j| decoder.weight(j, sections.clone().map(codes)))
            })
            .collect();
        for t in 0..n_tokens {
            let bundle = grid.bundle(n_tokens, t / grid.width);
            let column = t - bundle.first;
            let mut total = 0.0f32;
            for g in 0..grid.n_groups {
                let words = inputs.words(bundle, g).chunks_exact(WORD * bundle.width);
                let rounded = words.flat_map(|word| &word[column * WORD..][..WORD]);
                let products = weights[g * SPAN..].iter().zip(rounded);
                let sum: i32 = products.map(|(w, &q)| w * i32::from(q as i8)).sum();
                let scale = inputs.scale(bundle, g, column);
                total = scale.scale.mul_add(sum as f32, total);
                // A damaged buffer may name an input behind the last one.
                match weights.get(g * SPAN + scale.place as usize) {
                    Some(&weight) if scale.kept != 0.0 => {
                        total = scale.kept.mul_add(weight as f32, total);
                    }
                    _ => {}
                }
            }
            y.token_rows(t, r..r + 1)[0] = total * matrix.row_scale[r].to_f32();
        }
    }
}

macro_rules! compiled {
    ($name:ident, $set:path, $vectors:literal, $arch:literal, $features:literal) => {
        /// # Safety
        /// The machine has the instructions.
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(
            matrix: &SectionMatrix<'_>,
            decoder: &Decoder,
            inputs: Inputs<'_>,
            y: &mut Output<'_>,
            scratch: &mut Scratch,
        ) {
            // SAFETY: the caller's promise.
            unsafe { product::<$set, $vectors>(matrix, decoder, inputs, y, scratch) }
        }
    };
}

compiled!(
    avx512_vnni,
    crate::simd::avx512::Vnni,
    2,
    "x86_64",
    "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma"
);
compiled!(avx2, crate::simd::avx2::Signs, 2, "x86_64", "avx2,fma");
compiled!(avx_vnni, crate::simd::avx2::Vnni, 2, "x86_64", "avxvnni,avx2,fma");
compiled!(neon_dot, crate::simd::neon::DotProduct<false>, 4, "aarch64", "neon,dotprod");
compiled!(neon_i8mm, crate::simd::neon::DotProduct<true>, 4, "aarch64", "neon,i8mm");

/// How often a product passes over its results: as few passes as there can be, of the same length.
pub(super) fn n_passes(shape: SectionShape) -> usize {
    shape.d_in.div_ceil(SPAN).div_ceil(PANEL_SPANS)
}

/// What all panels of rows have in common while they pass over some spans.
struct Pass<'a> {
    matrix: &'a SectionMatrix<'a>,
    decoder: &'a Decoder,
    inputs: Inputs<'a>,
    spans: Range<usize>,
    /// The same as blocks of inputs.
    blocks: Range<usize>,
}

impl Pass<'_> {
    fn n_words(&self) -> usize {
        self.blocks.len() * BLOCK / WORD
    }

    /// Bytes of a decoded tile.
    fn tile_bytes(&self) -> usize {
        self.n_words() * ROW_TILE * WORD
    }

    /// The decoded tiles of a panel, wherever they are.
    fn panel<'a>(&self, kept: &'a KeptTiles, room: &'a [u8]) -> [&'a [u8]; PANEL_TILES] {
        let mut room = room.chunks_exact(self.tile_bytes());
        kept.each_ref().map(|kept| {
            let own = room.next().expect("room for a panel");
            kept.as_ref().map_or(own, |bytes| bytes.as_slice())
        })
    }
}

/// Totals of a panel's rows for one token.
type Totals = [f32; PANEL_ROWS];
/// A vector of totals, one for each row of a vector of sums.
type FloatsOf<D> = <<D as Dot>::Floats as Floats>::F;

/// `V` vectors of rows form a strip, whose sums for up to [`TOKENS`] tokens stay in registers.
///
/// # Safety
/// The machine has the instructions of `D`; decoder and inputs are for the matrix; `y` has its rows and
/// the tokens of the inputs.
#[inline(always)]
unsafe fn product<D: Dot, const V: usize>(
    matrix: &SectionMatrix<'_>,
    decoder: &Decoder,
    inputs: Inputs<'_>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) {
    let (grid, n_blocks) = (inputs.layout().grid, matrix.shape.n_blocks());
    let n_spans = grid.n_groups.div_ceil(n_passes(matrix.shape));
    let room = scratch.bytes(PANEL_ROWS * n_spans * SPAN);
    let tiles = y.tiles();
    for begin in (0..grid.n_groups).step_by(n_spans) {
        let spans = begin..grid.n_groups.min(begin + n_spans);
        let blocks = spans.start * SPAN / BLOCK..n_blocks.min(spans.end * SPAN / BLOCK);
        let pass = Pass { matrix, decoder, inputs, spans, blocks };
        for first in tiles.clone().step_by(PANEL_TILES) {
            let panel = first..tiles.end.min(first + PANEL_TILES);
            // SAFETY: the caller's promise; the tiles are the matrix's.
            unsafe {
                let kept = decode_panel::<D, V>(&pass, panel.clone(), room);
                let decoded = pass.panel(&kept, room);
                for index in 0..grid.n_bundles(inputs.n_tokens()) {
                    let bundle = grid.bundle(inputs.n_tokens(), index);
                    match bundle.width {
                        1 => multiply::<D, V, 1>(&pass, panel.clone(), decoded, bundle, y),
                        2 => multiply::<D, V, 2>(&pass, panel.clone(), decoded, bundle, y),
                        3 => multiply::<D, V, 3>(&pass, panel.clone(), decoded, bundle, y),
                        4 => multiply::<D, V, 4>(&pass, panel.clone(), decoded, bundle, y),
                        5 => multiply::<D, V, 5>(&pass, panel.clone(), decoded, bundle, y),
                        _ => multiply::<D, V, TOKENS>(&pass, panel.clone(), decoded, bundle, y),
                    }
                }
            }
        }
    }
}

/// The tiles of a panel that lie in a cache; the others are decoded into working memory.
type KeptTiles = [Option<Arc<TileBytes>>; PANEL_TILES];

/// Decodes the tiles of a panel that no cache holds, into the cache or, where they are not kept, into `room`.
///
/// # Safety
/// As [`product`]; `room` has room for a panel.
#[inline(always)]
unsafe fn decode_panel<D: Dot, const V: usize>(
    pass: &Pass<'_>,
    tiles: Range<usize>,
    room: &mut [u8],
) -> KeptTiles {
    let mut kept = KeptTiles::default();
    for (i, tile) in tiles.enumerate() {
        let own = &mut room[i * pass.tile_bytes()..][..pass.tile_bytes()];
        let (cached, span) = (pass.matrix.cached.as_ref(), pass.spans.start);
        kept[i] = cached.and_then(|cached| cached.find(tile, span));
        if kept[i].is_some() {
            continue;
        }
        let mut bytes = cached.and_then(|cached| cached.room(pass.tile_bytes()));
        let decoded = bytes.as_mut().map_or(own, TileBytes::as_mut_slice);
        // SAFETY: the caller's promise; either is a tile's.
        unsafe { decode::<D, V>(pass, tile, decoded) };
        kept[i] = cached.zip(bytes).map(|(cached, bytes)| cached.keep(tile, span, bytes));
    }
    kept
}

/// Decodes the pass's blocks of one tile to [four inputs, row of the strip, word, strip].
///
/// # Safety
/// As [`product`]; `decoded` has room for a tile.
#[inline(always)]
unsafe fn decode<D: Dot, const V: usize>(pass: &Pass<'_>, tile: usize, decoded: &mut [u8]) {
    let n_sections = pass.decoder.n_sections();
    let tile_bytes = (pass.matrix.shape.n_blocks() * n_sections).div_ceil(2) * PAIR_BYTES;
    let strip_rows = V * D::Floats::LANES;
    let strip_bytes = pass.n_words() * strip_rows * WORD;
    let place = |row: usize| row / strip_rows * strip_bytes + row % strip_rows * WORD;
    assert!(decoded.len() >= ROW_TILE / strip_rows * strip_bytes);
    let halves = [place(0), place(ROW_TILE / 2)];
    let codes = &pass.matrix.codes[tile * tile_bytes..][..tile_bytes];
    // SAFETY: the instructions are the caller's promise. The codes are those of a whole tile with these
    // blocks; each half of its rows has 64 bytes in every word of a strip, and strips are in `decoded`.
    unsafe {
        let out = halves.map(|at| decoded.as_mut_ptr().add(at));
        D::decode(
            pass.decoder.bytes(),
            codes.as_ptr(),
            pass.blocks.clone(),
            out,
            strip_rows * WORD,
        );
    }
}

/// Multiplies a decoded panel with the inputs of the `C` tokens of a bundle.
///
/// # Safety
/// As [`product`]; the bundle has `C` tokens.
#[inline(always)]
unsafe fn multiply<D: Dot, const V: usize, const C: usize>(
    pass: &Pass<'_>,
    tiles: Range<usize>,
    decoded: [&[u8]; PANEL_TILES],
    bundle: Bundle,
    y: &mut Output<'_>,
) {
    let strip_rows = V * D::Floats::LANES;
    let rows = tiles.start * ROW_TILE..y.rows().end.min(tiles.end * ROW_TILE);
    let mut totals: [Totals; C] = [[0.0; PANEL_ROWS]; C];
    if pass.spans.start > 0 {
        for (c, totals) in totals.iter_mut().enumerate() {
            totals[..rows.len()].copy_from_slice(y.token_rows(bundle.first + c, rows.clone()));
        }
    }
    for strip in 0..rows.len().div_ceil(strip_rows) {
        let row = strip * strip_rows;
        let weights = &decoded[row / ROW_TILE][row % ROW_TILE * WORD * pass.n_words()..];
        // SAFETY: the instructions are the caller's promise; a total is a panel's rows.
        unsafe {
            let mut at = [std::ptr::null_mut(); C];
            for c in 0..C {
                at[c] = totals[c].as_mut_ptr().add(strip * strip_rows);
            }
            let mut of_strip = [[D::Floats::load(at[0]); C]; V];
            for c in 0..C {
                for v in 0..V {
                    of_strip[v][c] = D::Floats::load(at[c].add(v * D::Floats::LANES));
                }
            }
            let of_strip = multiply_strip::<D, V, C>(pass, weights, bundle, of_strip);
            for c in 0..C {
                for v in 0..V {
                    D::Floats::store(at[c].add(v * D::Floats::LANES), of_strip[v][c]);
                }
            }
        }
    }
    let last = pass.spans.end == pass.inputs.layout().grid.n_groups;
    let row_scale = &pass.matrix.row_scale[rows.clone()];
    for (c, totals) in totals.iter().enumerate() {
        let out = y.token_rows(bundle.first + c, rows.clone());
        if last {
            for ((to, from), &scale) in out.iter_mut().zip(totals).zip(row_scale) {
                *to = from * finite_f16(scale);
            }
        } else {
            out.copy_from_slice(&totals[..rows.len()]);
        }
    }
}

/// Adds the products of a strip's rows with the tokens of a bundle to their totals, which stay in registers
/// where there are enough.
///
/// # Safety
/// As [`multiply`]; `weights` begins with the strip's.
#[inline(always)]
unsafe fn multiply_strip<D: Dot, const V: usize, const C: usize>(
    pass: &Pass<'_>,
    mut weights: &[u8],
    bundle: Bundle,
    mut totals: [[FloatsOf<D>; C]; V],
) -> [[FloatsOf<D>; C]; V] {
    let grid = pass.inputs.layout().grid;
    for g in pass.spans.clone() {
        let words = pass.inputs.words(bundle, g);
        let mut scales = [Scale::default(); C];
        let mut any_kept = false;
        for c in 0..C {
            scales[c] = pass.inputs.scale(bundle, g, c);
            any_kept |= scales[c].kept != 0.0;
        }
        let n_words = grid.units(g).len();
        let (span, rest) = weights.split_at(n_words * V * D::Floats::LANES * WORD);
        weights = rest;
        // SAFETY: the instructions are the caller's promise. `words` has C times four inputs for each of
        // n_words, `span` a strip's bytes for them.
        unsafe {
            let sums = dot::<D, V, C>(span.as_ptr(), words.as_ptr(), n_words, &scales);
            // Nothing but this in the loops: they are unrolled, and nothing leaves its register.
            for c in 0..C {
                let scale = D::Floats::splat(scales[c].scale);
                for v in 0..V {
                    totals[v][c] = D::Floats::fma(scale, D::floats(sums[v][c]), totals[v][c]);
                }
            }
            if any_kept {
                // A copy, because an index that is not known in advance needs an array in memory.
                let mut copy = totals;
                for c in 0..C {
                    add_kept::<D, V, C>(span, scales[c], c, &mut copy);
                }
                totals = copy;
            }
        }
    }
    totals
}

/// The integer sums of a strip's rows and the tokens of a bundle over `n_words` words of one span.
///
/// # Safety
/// The machine has the instructions of `D`; `n_words` words of a strip's weights and of the bundle's inputs
/// are valid.
#[inline(always)]
unsafe fn dot<D: Dot, const V: usize, const C: usize>(
    weights: *const u8,
    words: *const u8,
    n_words: usize,
    scales: &[Scale; C],
) -> [[D::Sums; C]; V] {
    debug_assert!(n_words <= SPAN_WORDS);
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[D::sums(0); C]; V];
        for c in 0..C {
            // What the bias of the weights will add is taken off beforehand.
            let start = D::sums(scales[c].sum.wrapping_mul(-D::BIAS));
            for v in 0..V {
                sums[v][c] = start;
            }
        }
        D::dots::<V, C>(weights, words, n_words, sums)
    }
}

/// Adds the products of token `c` with the input that was not rounded, if there is one.
///
/// # Safety
/// The machine has the instructions of `D`; `span` holds a strip's weights.
#[inline(always)]
unsafe fn add_kept<D: Dot, const V: usize, const C: usize>(
    span: &[u8],
    scale: Scale,
    c: usize,
    totals: &mut [[FloatsOf<D>; C]; V],
) {
    if scale.kept == 0.0 {
        return;
    }
    let place = scale.place as usize;
    let strip_bytes = V * D::Floats::LANES * WORD;
    // A damaged buffer may name an input behind the last one.
    let Some(word) = span.chunks_exact(strip_bytes).nth(place / WORD) else { return };
    for v in 0..V {
        // SAFETY: the instructions are the caller's promise; `word` holds V vectors.
        unsafe {
            let weights = D::weights(word.as_ptr().add(v * D::Floats::LANES * WORD));
            let weights = D::floats(D::weight(weights, place % WORD));
            totals[v][c] = D::Floats::fma(D::Floats::splat(scale.kept), weights, totals[v][c]);
        }
    }
}
