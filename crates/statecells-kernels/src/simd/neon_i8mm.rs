//! Products of matrices of bytes, which ARM has from v8.6 on (`i8mm`).
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::arch::aarch64::*;

use super::Dot;
use super::neon::{DotProduct, Neon};
use crate::sections::{TOKENS, WORD};

/// NEON with products of matrices of bytes (`i8mm`): two rows with two tokens over eight inputs at a time.
#[derive(Clone, Copy)]
pub(crate) struct MatrixProduct;

/// Most pairs of tokens, the last of which may be half of one.
const PAIRS: usize = TOKENS.div_ceil(2);

impl Dot for MatrixProduct {
    const LANES: usize = DotProduct::LANES;
    const BIAS: i32 = DotProduct::BIAS;
    type Lanes = Neon;
    type Sums = int32x4_t;
    type Words = int8x16_t;
    type Totals = float32x4_t;

    #[inline(always)]
    unsafe fn sums(value: i32) -> int32x4_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::sums(value) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> int8x16_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::weights(from) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> int8x16_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::inputs(from) }
    }

    /// Eight inputs, of which the second four are zeros.
    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, weights: int8x16_t, inputs: int8x16_t) -> int32x4_t {
        // SAFETY: see the trait.
        unsafe {
            let (low, high) = halves(weights, vdupq_n_s8(0));
            let inputs = halves(inputs, vdupq_n_s8(0)).0;
            let zero = vdupq_n_s32(0);
            let (low, high) =
                (matrix_product(zero, low, inputs), matrix_product(zero, high, inputs));
            vaddq_s32(sums, vuzp1q_s32(low, high))
        }
    }

    /// Of a pair of tokens and a vector of rows there are two matrices of sums, of the lower and of the upper two rows:
    /// `[token, row]`.
    #[inline(always)]
    unsafe fn dots<const V: usize, const C: usize>(
        mut weights: *const u8,
        mut inputs: *const u8,
        n_words: usize,
        mut sums: [[int32x4_t; C]; V],
    ) -> [[int32x4_t; C]; V] {
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
                    let second =
                        vset_lane_s32::<1>(word(next.add(b)), vdup_n_s32(word(next.add(a))));
                    let tokens = vcombine_s32(vzip1_s32(first, second), vzip2_s32(first, second));
                    pairs[p] = vreinterpretq_s8_s32(tokens);
                }
                let next = weights.add(V * Self::LANES * WORD);
                for v in 0..V {
                    let at = v * Self::LANES * WORD;
                    let (low, high) =
                        halves(Self::weights(weights.add(at)), Self::weights(next.add(at)));
                    for p in 0..n_pairs {
                        matrices[v][p][0] = matrix_product(matrices[v][p][0], low, pairs[p]);
                        matrices[v][p][1] = matrix_product(matrices[v][p][1], high, pairs[p]);
                    }
                }
                weights = next.add(V * Self::LANES * WORD);
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

    #[inline(always)]
    unsafe fn weight(weights: int8x16_t, i: usize) -> int32x4_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::weight(weights, i) }
    }

    #[inline(always)]
    unsafe fn add_scaled(totals: float32x4_t, sums: int32x4_t, scale: f32) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::add_scaled(totals, sums, scale) }
    }

    #[inline(always)]
    unsafe fn load_totals(from: *const f32) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { DotProduct::load_totals(from) }
    }

    #[inline(always)]
    unsafe fn store_totals(to: *mut f32, totals: float32x4_t) {
        // SAFETY: see the trait.
        unsafe { DotProduct::store_totals(to, totals) }
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
