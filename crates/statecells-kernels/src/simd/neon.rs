//! NEON (Advanced SIMD), which every 64-bit ARM has.

use std::arch::aarch64::*;

use super::{Bytes, Dot, Floats, Lookup, dots_by_word, neon_i8mm};
use crate::sections::BIAS;

/// Name of the instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Floats for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: float32x4_t) {
        // SAFETY: see the trait.
        unsafe { vst1q_f32(to, value) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn larger(top: float32x4_t, value: float32x4_t) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe {
            let value = vandq_u32(vreinterpretq_u32_f32(value), vdupq_n_u32(0x7fff_ffff));
            vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(top), value))
        }
    }

    #[inline(always)]
    unsafe fn quantize8(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            for i in (0..32).step_by(16) {
                let (a, b) = round16(values.add(i), factor);
                store_bytes(out.add(i), vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
            }
        }
    }

    #[inline(always)]
    unsafe fn quantize16(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            for i in (0..32).step_by(16) {
                let (a, b) = round16(values.add(i), factor);
                let up = vdupq_n_s16(128);
                let (ah, bh) = (vaddq_s16(a, up), vaddq_s16(b, up));
                store_bytes(out.add(i), vcombine_s8(vshrn_n_s16::<8>(ah), vshrn_n_s16::<8>(bh)));
                store_bytes(out.add(32 + i), vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
            }
        }
    }
}

impl Lookup for Neon {
    const TILES: usize = 1;
    const FAR: bool = false;
    /// Rows 0..16 and 16..32.
    type Bytes = [uint8x16_t; 2];
    /// Eight rows each; widening additions make the even-odd split of the x86 forms unnecessary.
    type Sums = [uint16x8_t; 4];

    #[inline(always)]
    unsafe fn codes(first: *const u8, _: *const u8) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vld1q_u8(first), vld1q_u8(first.add(16))] }
    }

    #[inline(always)]
    unsafe fn low(codes: Self::Bytes) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe {
            let mask = vdupq_n_u8(15);
            [vandq_u8(codes[0], mask), vandq_u8(codes[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn high(codes: Self::Bytes) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vshrq_n_u8::<4>(codes[0]), vshrq_n_u8::<4>(codes[1])] }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vld1q_u8(from); 2] }
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::Bytes, index: Self::Bytes) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vqtbl1q_u8(table[0], index[0]), vqtbl1q_u8(table[0], index[1])] }
    }

    #[inline(always)]
    unsafe fn sums(planes: usize) -> Self::Sums {
        // SAFETY: see the trait.
        unsafe { [vdupq_n_u16((planes as u16).wrapping_mul(BIAS as u16).wrapping_neg()); 4] }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, entries: Self::Bytes) -> Self::Sums {
        // SAFETY: see the trait.
        unsafe {
            [
                vaddw_u8(sums[0], vget_low_u8(entries[0])),
                vaddw_high_u8(sums[1], entries[0]),
                vaddw_u8(sums[2], vget_low_u8(entries[1])),
                vaddw_high_u8(sums[3], entries[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn flush(sums: Self::Sums, scale: f32, total: *mut f32) {
        // SAFETY: see the trait.
        unsafe {
            for (i, sums) in sums.into_iter().enumerate() {
                let (sums, total) = (vreinterpretq_s16_u16(sums), total.add(8 * i));
                let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(sums)));
                let high = vcvtq_f32_s32(vmovl_high_s16(sums));
                vst1q_f32(total, vfmaq_n_f32(vld1q_f32(total), low, scale));
                vst1q_f32(total.add(4), vfmaq_n_f32(vld1q_f32(total.add(4)), high, scale));
            }
        }
    }

    /// There is no stable intrinsic; the hardware's own prefetch has to do.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

/// 16 products as 16-bit integers.
#[inline(always)]
unsafe fn round16(values: *const f32, factor: f32) -> (int16x8_t, int16x8_t) {
    // SAFETY: the callers' promises, for 16 values.
    unsafe {
        let mut q = [vdupq_n_s32(0); 4];
        for (i, q) in q.iter_mut().enumerate() {
            *q = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values.add(4 * i)), factor));
        }
        let a = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
        (a, vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3])))
    }
}

/// Stores 16 bytes, plus 128.
#[inline(always)]
unsafe fn store_bytes(out: *mut u8, bytes: int8x16_t) {
    // SAFETY: the callers' promises, for 16 bytes.
    unsafe { vst1q_u8(out, veorq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_u8(0x80))) }
}

impl Bytes for Neon {
    #[inline(always)]
    unsafe fn splat_bytes(value: u8) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vdupq_n_u8(value); 2] }
    }

    #[inline(always)]
    unsafe fn add_bytes(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        // SAFETY: see the trait.
        unsafe { [vaddq_u8(a[0], b[0]), vaddq_u8(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn store_words(bytes: [Self::Bytes; 4], out: [*mut u8; 2]) {
        // SAFETY: see the trait.
        unsafe {
            let [a, b, c, d] = bytes;
            vst4q_u8(out[0], uint8x16x4_t(a[0], b[0], c[0], d[0]));
            vst4q_u8(out[1], uint8x16x4_t(a[1], b[1], c[1], d[1]));
        }
    }
}

/// NEON with dot products (`dotprod`), or with products of matrices (`i8mm`).
#[derive(Clone, Copy)]
pub(crate) struct DotProduct<const MATRICES: bool>;

impl<const MATRICES: bool> Dot for DotProduct<MATRICES> {
    const BIAS: i32 = 0;
    type Floats = Neon;
    type Lanes = Neon;
    type Sums = int32x4_t;
    type Words = int8x16_t;

    #[inline(always)]
    unsafe fn sums(value: i32) -> int32x4_t {
        // SAFETY: see the trait.
        unsafe { vdupq_n_s32(value) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> int8x16_t {
        // SAFETY: see the trait.
        unsafe { vld1q_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> int8x16_t {
        // SAFETY: see the trait.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())) }
    }

    /// There is no stable intrinsic.
    #[inline(always)]
    unsafe fn dot(mut sums: int32x4_t, weights: int8x16_t, inputs: int8x16_t) -> int32x4_t {
        // SAFETY: see the trait; the instruction touches these registers only.
        unsafe {
            std::arch::asm!(
                "sdot {sums:v}.4s, {weights:v}.16b, {inputs:v}.16b",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                inputs = in(vreg) inputs,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    #[inline(always)]
    unsafe fn dots<const V: usize, const C: usize>(
        weights: *const u8,
        inputs: *const u8,
        n_words: usize,
        sums: [[int32x4_t; C]; V],
    ) -> [[int32x4_t; C]; V] {
        // SAFETY: see the trait.
        unsafe {
            match MATRICES {
                true => neon_i8mm::dots::<V, C>(weights, inputs, n_words, sums),
                false => dots_by_word::<Self, V, C>(weights, inputs, n_words, sums),
            }
        }
    }

    #[inline(always)]
    unsafe fn weight(weights: int8x16_t, i: usize) -> int32x4_t {
        // SAFETY: see the trait.
        unsafe {
            let up = vdupq_n_s32(24 - 8 * i as i32);
            vshrq_n_s32::<24>(vshlq_s32(vreinterpretq_s32_s8(weights), up))
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: int32x4_t) -> float32x4_t {
        // SAFETY: see the trait.
        unsafe { vcvtq_f32_s32(sums) }
    }
}
