//! What the fast forms of the `sections` kernels need from an instruction set.
//!
//! The loops are written once over these traits; each set fills them in a file of its own. The methods
//! must end up inlined in a function that has the instructions enabled (`#[target_feature]`), else
//! each of them would be a call: they are `inline(always)`, and the loops take no closures and call no
//! generic library functions on the way, which would not inherit the instructions
//! (`scripts/check-inlined.sh` finds those that do).
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::ops::Range;

use crate::sections::{AtomBytes, FINE, PAIR_BYTES, WORD};

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_i8mm;

/// What rounds a sum of atoms to the nearest step.
const HALF_STEP: u8 = FINE as u8 / 2;
// The high nibble of a byte is its sixteenth.
const _: () = assert!(FINE == 16);

/// Vectors of floats.
///
/// # Safety
/// Every method needs a machine with the instructions. Pointers are valid for all the method reads or
/// writes, at any alignment.
pub(crate) trait Floats: Copy {
    /// Floats of a vector: 4, 8 or 16.
    const LANES: usize;
    /// A vector.
    type F: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lane by lane the larger magnitude, compared as bits: NaN above infinity above all numbers.
    unsafe fn larger(top: Self::F, value: Self::F) -> Self::F;
    /// With q = `values[i] * factor` to the nearest integer, ties to even, of magnitude at most 127:
    /// q + 128 as bytes. 32 values, 32 bytes.
    unsafe fn quantize8(values: *const f32, factor: f32, out: *mut u8);
    /// The same for a magnitude of at most 32639, q = 256 * h + l with l in -128..=127: all h + 128 as
    /// bytes, then all l + 128. 32 values, 64 bytes.
    unsafe fn quantize16(values: *const f32, factor: f32, out: *mut u8);
}

/// Lookups for tiles of 32 rows.
///
/// # Safety
/// As for [`Floats`].
pub(crate) trait Lookup: Copy {
    /// Tiles that a vector of bytes spans: 1 or 2.
    const TILES: usize;
    /// Whether codes are prefetched from far, into the second-level cache.
    const FAR: bool;
    /// One byte per row.
    type Bytes: Copy;
    /// One 16-bit sum per row.
    type Sums: Copy;

    /// 32 bytes of codes of each tile. The second pointer is read only if `TILES` is 2.
    unsafe fn codes(first: *const u8, second: *const u8) -> Self::Bytes;
    /// The low nibbles.
    unsafe fn low(codes: Self::Bytes) -> Self::Bytes;
    /// The high nibbles.
    unsafe fn high(codes: Self::Bytes) -> Self::Bytes;
    /// A table of 16 bytes, ready for [`Lookup::look_up`].
    unsafe fn table(from: *const u8) -> Self::Bytes;
    /// `table[index]` for every row; all indexes are below 16.
    unsafe fn look_up(table: Self::Bytes, index: Self::Bytes) -> Self::Bytes;
    /// Sums to which `planes` biased entries will be added: minus the bias of all of them.
    unsafe fn sums(planes: usize) -> Self::Sums;
    /// Adds an entry, an unsigned byte, modulo 2^16.
    unsafe fn add(sums: Self::Sums, entries: Self::Bytes) -> Self::Sums;
    /// `total[row] += scale * sums[row]`, rounded once, the sums read as signed: 32 rows per tile.
    unsafe fn flush(sums: Self::Sums, scale: f32, total: *mut f32);
    /// Asks for the cache line at `at`, which need not be a valid address.
    unsafe fn prefetch(at: *const u8);
}

/// Bytes of 32 rows at a time, for decoders that look up one position of a block after the other.
///
/// # Safety
/// As for [`Floats`].
pub(crate) trait Bytes: Lookup {
    unsafe fn splat_bytes(value: u8) -> Self::Bytes;
    /// Modulo 256.
    unsafe fn add_bytes(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Row by row the four bytes of four positions: 64 bytes of the first 16 rows, then of the others.
    unsafe fn store_words(bytes: [Self::Bytes; 4], out: [*mut u8; 2]);
}

/// Products of bytes, summed four by four, for vectors of rows.
///
/// # Safety
/// As for [`Floats`].
pub(crate) trait Dot: Copy {
    /// What is added to weights, so that they are unsigned; 0 where the instructions take signed ones.
    const BIAS: i32;
    /// Vectors of as many floats as a vector has rows.
    type Floats: Floats;
    /// What decodes one position after the other.
    type Lanes: Bytes;
    /// A 32-bit sum per row.
    type Sums: Copy;
    /// Four bytes per row, or the same four for all rows.
    type Words: Copy;

    /// All sums set to `value`.
    unsafe fn sums(value: i32) -> Self::Sums;
    /// Four weights of each row.
    unsafe fn weights(from: *const u8) -> Self::Words;
    /// Four inputs, which all rows multiply with.
    unsafe fn inputs(from: *const u8) -> Self::Words;
    /// Adds the four products of each row, exactly.
    unsafe fn dot(sums: Self::Sums, weights: Self::Words, inputs: Self::Words) -> Self::Sums;
    /// Adds the products of `V` vectors of rows with `C` tokens over `n_words` words, an even number: `weights` has
    /// the vectors of a word side by side, `inputs` the tokens.
    #[inline(always)]
    unsafe fn dots<const V: usize, const C: usize>(
        weights: *const u8,
        inputs: *const u8,
        n_words: usize,
        sums: [[Self::Sums; C]; V],
    ) -> [[Self::Sums; C]; V] {
        // SAFETY: the caller's promise.
        unsafe { dots_by_word::<Self, V, C>(weights, inputs, n_words, sums) }
    }
    /// Each row's weight number `i` of four, as a sum.
    unsafe fn weight(weights: Self::Words, i: usize) -> Self::Sums;
    /// Each row's sum as a float.
    unsafe fn floats(sums: Self::Sums) -> <Self::Floats as Floats>::F;
    /// Decodes `blocks` of a tile, whose codes are at `codes`. The two words of a block are `word_bytes` apart,
    /// as are those of the next block; each has 64 bytes for the first 16 rows and 64 for the others, at
    /// `out` for the first block.
    #[inline(always)]
    unsafe fn decode(
        atoms: &[AtomBytes],
        codes: *const u8,
        blocks: Range<usize>,
        out: [*mut u8; 2],
        word_bytes: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            decode_lanes::<Self::Lanes>(atoms, codes, blocks, out, word_bytes, Self::BIAS as u8);
        }
    }
}

/// [`Dot::dots`] one word after the other.
///
/// # Safety
/// As for [`Dot::dots`].
#[inline(always)]
unsafe fn dots_by_word<D: Dot, const V: usize, const C: usize>(
    mut weights: *const u8,
    mut inputs: *const u8,
    n_words: usize,
    mut sums: [[D::Sums; C]; V],
) -> [[D::Sums; C]; V] {
    let row_bytes = D::Floats::LANES * WORD;
    // SAFETY: the caller's promise.
    unsafe {
        for _ in 0..n_words {
            let mut rows = [D::weights(weights); V];
            for v in 1..V {
                rows[v] = D::weights(weights.add(v * row_bytes));
            }
            for c in 0..C {
                let inputs = D::inputs(inputs.add(c * WORD));
                for v in 0..V {
                    sums[v][c] = D::dot(sums[v][c], rows[v], inputs);
                }
            }
            weights = weights.add(V * row_bytes);
            inputs = inputs.add(C * WORD);
        }
        sums
    }
}

/// [`Dot::decode`] one position after the other.
///
/// # Safety
/// As for [`Dot::decode`], for a machine with the instructions of `L`.
#[inline(always)]
unsafe fn decode_lanes<L: Bytes>(
    atoms: &[AtomBytes],
    codes: *const u8,
    blocks: Range<usize>,
    out: [*mut u8; 2],
    word_bytes: usize,
    bias: u8,
) {
    // SAFETY: the caller's promise; planes are those of the blocks, two in 32 bytes.
    unsafe {
        let mut at = 0;
        for block in blocks {
            for half in 0..2 {
                let mut coarse = [L::splat_bytes(bias); 4];
                let mut rest = [L::splat_bytes(HALF_STEP); 4];
                for (plane, section) in (block * atoms.len()..).zip(atoms) {
                    let codes = codes.add(plane / 2 * PAIR_BYTES);
                    let both = L::codes(codes, codes);
                    let index = if plane.is_multiple_of(2) { L::low(both) } else { L::high(both) };
                    for q in 0..4 {
                        let [a, b] = &section.lanes[4 * half + q];
                        coarse[q] =
                            L::add_bytes(coarse[q], L::look_up(L::table(a.as_ptr()), index));
                        rest[q] = L::add_bytes(rest[q], L::look_up(L::table(b.as_ptr()), index));
                    }
                }
                for q in 0..4 {
                    // The rest is in sixteenths.
                    coarse[q] = L::add_bytes(coarse[q], L::high(rest[q]));
                }
                L::store_words(coarse, [out[0].add(at), out[1].add(at)]);
                at += word_bytes;
            }
        }
    }
}
