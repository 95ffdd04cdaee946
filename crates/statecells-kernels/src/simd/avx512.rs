//! AVX-512 F, BW and VL, and the dot products of VNNI. The byte shuffle looks up 16 entries in each
//! 128-bit lane, as on AVX2, so a vector spans two tiles.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Dot, Floats, HALF_STEP, Lookup};
use crate::sections::{AtomBytes, BIAS, PAIR_BYTES};

/// Name of the instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

impl Floats for Avx512 {
    const LANES: usize = 16;
    type F = __m512;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: see the trait.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see the trait.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        // SAFETY: see the trait.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the trait.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the trait.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn larger(top: __m512, value: __m512) -> __m512 {
        // SAFETY: see the trait.
        unsafe {
            let value = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(i32::MAX));
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(top), value))
        }
    }

    #[inline(always)]
    unsafe fn quantize8(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            let (a, b) = round32(values, factor);
            store_bytes(out, a);
            store_bytes(out.add(16), b);
        }
    }

    #[inline(always)]
    unsafe fn quantize16(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            let (a, b) = round32(values, factor);
            let up = _mm512_set1_epi32(128);
            store_bytes(out, _mm512_srai_epi32::<8>(_mm512_add_epi32(a, up)));
            store_bytes(out.add(16), _mm512_srai_epi32::<8>(_mm512_add_epi32(b, up)));
            store_bytes(out.add(32), a);
            store_bytes(out.add(48), b);
        }
    }
}

impl Lookup for Avx512 {
    const TILES: usize = 2;
    const FAR: bool = true;
    type Bytes = __m512i;
    /// As for AVX2.
    type Sums = [__m512i; 2];

    #[inline(always)]
    unsafe fn codes(first: *const u8, second: *const u8) -> __m512i {
        // SAFETY: see the trait.
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(second.cast()))
        }
    }

    #[inline(always)]
    unsafe fn low(codes: __m512i) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(codes: __m512i) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, index: __m512i) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    unsafe fn sums(planes: usize) -> [__m512i; 2] {
        // SAFETY: see the trait.
        unsafe {
            let bias = (planes as i16).wrapping_mul(BIAS as i16).wrapping_neg();
            [_mm512_set1_epi16(bias.wrapping_mul(257)), _mm512_set1_epi16(bias)]
        }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m512i; 2], entries: __m512i) -> [__m512i; 2] {
        // SAFETY: see the trait.
        unsafe {
            let odd = _mm512_maddubs_epi16(entries, _mm512_set1_epi16(0x0100));
            [_mm512_add_epi16(sums[0], entries), _mm512_add_epi16(sums[1], odd)]
        }
    }

    #[inline(always)]
    unsafe fn flush(sums: [__m512i; 2], scale: f32, total: *mut f32) {
        // SAFETY: see the trait.
        unsafe {
            let odd = sums[1];
            let even = _mm512_sub_epi16(sums[0], _mm512_slli_epi16::<8>(odd));
            // In each 128-bit lane 16 rows in order: the low and the high half of them.
            let (a, b) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
            let scale = _mm512_set1_ps(scale);
            let (a0, a1) = (_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64::<1>(a));
            let (b0, b1) = (_mm512_castsi512_si256(b), _mm512_extracti64x4_epi64::<1>(b));
            add_scaled(_mm256_permute2x128_si256::<0x20>(a0, b0), scale, total);
            add_scaled(_mm256_permute2x128_si256::<0x31>(a0, b0), scale, total.add(16));
            add_scaled(_mm256_permute2x128_si256::<0x20>(a1, b1), scale, total.add(32));
            add_scaled(_mm256_permute2x128_si256::<0x31>(a1, b1), scale, total.add(48));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see the trait.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
    }
}

/// 32 products as 32-bit integers.
#[inline(always)]
unsafe fn round32(values: *const f32, factor: f32) -> (__m512i, __m512i) {
    // SAFETY: the callers' promises, for 32 values.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        let a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values), factor));
        (a, _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values.add(16)), factor)))
    }
}

/// Stores the low bytes of 16 integers, plus 128.
#[inline(always)]
unsafe fn store_bytes(out: *mut u8, values: __m512i) {
    // SAFETY: the callers' promises, for 16 bytes.
    unsafe {
        let bytes = _mm512_cvtepi32_epi8(values);
        _mm_storeu_si128(out.cast(), _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
    }
}

/// `total += scale * sums` for 16 rows.
#[inline(always)]
unsafe fn add_scaled(sums: __m256i, scale: __m512, total: *mut f32) {
    // SAFETY: the callers' promises, for 16 floats.
    unsafe {
        let sums = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sums));
        _mm512_storeu_ps(total, _mm512_fmadd_ps(scale, sums, _mm512_loadu_ps(total)));
    }
}

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Dot for Vnni {
    const BIAS: i32 = 128;
    type Floats = Avx512;
    type Lanes = super::avx2::Avx2;
    type Sums = __m512i;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn sums(value: i32) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, weights: __m512i, inputs: __m512i) -> __m512i {
        // SAFETY: see the trait.
        unsafe { _mm512_dpbusd_epi32(sums, weights, inputs) }
    }

    #[inline(always)]
    unsafe fn weight(weights: __m512i, i: usize) -> __m512i {
        // SAFETY: see the trait.
        unsafe {
            let byte = _mm512_srlv_epi32(weights, _mm512_set1_epi32(8 * i as i32));
            let byte = _mm512_and_si512(byte, _mm512_set1_epi32(255));
            _mm512_sub_epi32(byte, _mm512_set1_epi32(Self::BIAS))
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: __m512i) -> __m512 {
        // SAFETY: see the trait.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    /// The 16 atoms' bytes for half a block are a vector of 32-bit words: one shuffle gives four bytes of
    /// 16 rows, in the order that the product wants.
    #[inline(always)]
    unsafe fn decode(
        atoms: &[AtomBytes],
        codes: *const u8,
        blocks: Range<usize>,
        out: [*mut u8; 2],
        word_bytes: usize,
    ) {
        // SAFETY: see the trait; planes are those of the blocks, two in 32 bytes.
        unsafe {
            let mut at = 0;
            for block in blocks {
                let mut coarse = [[_mm512_set1_epi8(Self::BIAS as i8); 2]; 2];
                let mut rest = [[_mm512_set1_epi8(HALF_STEP as i8); 2]; 2];
                let mut pair = [_mm512_setzero_si512(); 2];
                let first = block * atoms.len();
                for (plane, section) in (first..).zip(atoms) {
                    if plane == first || plane % 2 == 0 {
                        for rows in 0..2 {
                            let codes = codes.add(plane / 2 * PAIR_BYTES + 16 * rows);
                            pair[rows] = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
                        }
                    }
                    // The shuffle looks at the lowest four bits only.
                    let mut index = pair;
                    if plane % 2 == 1 {
                        for rows in 0..2 {
                            index[rows] = _mm512_srli_epi32::<4>(pair[rows]);
                        }
                    }
                    // Loaded once for all 32 rows.
                    let mut words = [[_mm512_setzero_si512(); 2]; 2];
                    for half in 0..2 {
                        for part in 0..2 {
                            let from = section.words[half][part].as_ptr();
                            words[half][part] = _mm512_loadu_si512(from.cast());
                        }
                    }
                    for rows in 0..2 {
                        for half in 0..2 {
                            let a = _mm512_permutexvar_epi32(index[rows], words[half][0]);
                            let b = _mm512_permutexvar_epi32(index[rows], words[half][1]);
                            coarse[rows][half] = _mm512_add_epi8(coarse[rows][half], a);
                            rest[rows][half] = _mm512_add_epi8(rest[rows][half], b);
                        }
                    }
                }
                for rows in 0..2 {
                    for half in 0..2 {
                        // The rest is in sixteenths.
                        let up = _mm512_srli_epi16::<4>(rest[rows][half]);
                        let up = _mm512_and_si512(up, _mm512_set1_epi8(15));
                        let bytes = _mm512_add_epi8(coarse[rows][half], up);
                        let out = out[rows].add(at + half * word_bytes);
                        _mm512_storeu_si512(out.cast(), bytes);
                    }
                }
                at += 2 * word_bytes;
            }
        }
    }
}
