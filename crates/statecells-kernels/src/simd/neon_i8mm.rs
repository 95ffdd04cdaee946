//! Products of matrices of bytes, which ARM has from v8.6 on (`i8mm`).
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::arch::aarch64::*;

use super::Floats;
use super::neon::Neon;
use crate::sections::{TOKENS, WORD};

/// Most pairs of tokens, the last of which may be half of one.
const PAIRS: usize = TOKENS.div_ceil(2);

/// Sums of products, two rows with two tokens over eight inputs at a time. Of a pair of tokens and a vector of rows there are two matrices of sums, of the lower and of the upper two rows:
/// `[token, row]`.
///
/// # Safety
/// As for [`super::Dot::dots`] of [`super::neon::DotProduct`], on a machine with `i8mm`.
#[inline(always)]
pub(super) unsafe fn dots<const V: usize, const C: usize>(
    mut weights: *const u8,
    mut inputs: *const u8,
    n_words: usize,
    mut sums: [[int32x4_t; C]; V],
) -> [[int32x4_t; C]; V] {
    let row_bytes = Neon::LANES * WORD;
    // SAFETY: the caller's promise; a token without a second one is its own.
    unsafe {
        let n_pairs = C.div_ceil(2);
        let mut matrices = [[[vdupq_n_s32(0); 2]; PAIRS]; V];
        for _ in 0..n_words / 2 {
            let mut pairs = [vdupq_n_s8(0); PAIRS];
            for p in 0..n_pairs {
                let (a, b) = (2 * p * WORD, (2 * p + 1).min(C - 1) * WORD);
                let first =
                    vset_lane_s32::<1>(word(inputs.add(b)), vdup_n_s32(word(inputs.add(a))));
                let next = inputs.add(C * WORD);
                let second = vset_lane_s32::<1>(word(next.add(b)), vdup_n_s32(word(next.add(a))));
                let tokens = vcombine_s32(vzip1_s32(first, second), vzip2_s32(first, second));
                pairs[p] = vreinterpretq_s8_s32(tokens);
            }
            let next = weights.add(V * row_bytes);
            for v in 0..V {
                let at = v * row_bytes;
                let (low, high) =
                    halves(vld1q_s8(weights.add(at).cast()), vld1q_s8(next.add(at).cast()));
                for p in 0..n_pairs {
                    matrices[v][p][0] = matrix_product(matrices[v][p][0], low, pairs[p]);
                    matrices[v][p][1] = matrix_product(matrices[v][p][1], high, pairs[p]);
                }
            }
            weights = next.add(V * row_bytes);
            inputs = inputs.add(2 * C * WORD);
        }
        for v in 0..V {
            for c in 0..C {
                let [low, high] = matrices[v][c / 2];
                let of_token = match c % 2 {
                    0 => vuzp1q_s32(low, high),
                    _ => vuzp2q_s32(low, high),
                };
                sums[v][c] = vaddq_s32(sums[v][c], of_token);
            }
        }
        sums
    }
}

/// Four bytes as they lie in memory.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn word(from: *const u8) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { from.cast::<i32>().read_unaligned() }
}

/// Two words of four rows as eight bytes of each: of the lower two rows and of the upper two.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn halves(first: int8x16_t, second: int8x16_t) -> (int8x16_t, int8x16_t) {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second));
        let (low, high) = (vzip1q_s32(first, second), vzip2q_s32(first, second));
        (vreinterpretq_s8_s32(low), vreinterpretq_s8_s32(high))
    }
}

/// Adds the four products of two rows with two tokens. There is no stable intrinsic.
///
/// # Safety
/// The machine has `i8mm`.
#[inline(always)]
unsafe fn matrix_product(mut sums: int32x4_t, rows: int8x16_t, tokens: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; the instruction touches these registers only.
    unsafe {
        std::arch::asm!(
            "smmla {sums:v}.4s, {rows:v}.16b, {tokens:v}.16b",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            tokens = in(vreg) tokens,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
