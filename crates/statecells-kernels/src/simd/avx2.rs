//! AVX2 and FMA.

use std::arch::x86_64::*;

use super::{Bytes, Dot, Floats, Lookup};
use crate::sections::BIAS;

/// Name of the instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Floats for Avx2 {
    const LANES: usize = 8;
    type F = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: see the trait.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: see the trait.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        // SAFETY: see the trait.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the trait.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the trait.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn larger(top: __m256, value: __m256) -> __m256 {
        // SAFETY: see the trait.
        unsafe {
            let value = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(i32::MAX));
            _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(top), value))
        }
    }

    #[inline(always)]
    unsafe fn quantize8(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            let (a, b) = round32(values, factor);
            store_packed(out, _mm256_packs_epi16(a, b));
        }
    }

    #[inline(always)]
    unsafe fn quantize16(values: *const f32, factor: f32, out: *mut u8) {
        // SAFETY: see the trait.
        unsafe {
            let (a, b) = round32(values, factor);
            let up = _mm256_set1_epi16(128);
            let (ah, bh) = (_mm256_add_epi16(a, up), _mm256_add_epi16(b, up));
            let (ah, bh) = (_mm256_srai_epi16::<8>(ah), _mm256_srai_epi16::<8>(bh));
            store_packed(out, _mm256_packs_epi16(ah, bh));
            let (al, bl) = (_mm256_slli_epi16::<8>(a), _mm256_slli_epi16::<8>(b));
            let (al, bl) = (_mm256_srai_epi16::<8>(al), _mm256_srai_epi16::<8>(bl));
            store_packed(out.add(32), _mm256_packs_epi16(al, bl));
        }
    }
}

impl Lookup for Avx2 {
    const TILES: usize = 1;
    const FAR: bool = false;
    type Bytes = __m256i;
    /// Neighbouring rows (e, o) as one 16-bit number: the sum of e + 256 * o, and the sum of o alone.
    /// Two additions and a product instead of unpacking to 16 bits, and all of it modulo 2^16: the sum
    /// of e is the first minus 256 times the second.
    type Sums = [__m256i; 2];

    #[inline(always)]
    unsafe fn codes(first: *const u8, _: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_loadu_si256(first.cast()) }
    }

    #[inline(always)]
    unsafe fn low(codes: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_and_si256(codes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(codes: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn table(from: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m256i, index: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    unsafe fn sums(planes: usize) -> [__m256i; 2] {
        // SAFETY: see the trait.
        unsafe {
            let bias = (planes as i16).wrapping_mul(BIAS as i16).wrapping_neg();
            [_mm256_set1_epi16(bias.wrapping_mul(257)), _mm256_set1_epi16(bias)]
        }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m256i; 2], entries: __m256i) -> [__m256i; 2] {
        // SAFETY: see the trait.
        unsafe {
            // Only the odd row survives the product with (0, 1); a shift would do the same, but compete with
            // the shuffles for their ports.
            let odd = _mm256_maddubs_epi16(entries, _mm256_set1_epi16(0x0100));
            [_mm256_add_epi16(sums[0], entries), _mm256_add_epi16(sums[1], odd)]
        }
    }

    #[inline(always)]
    unsafe fn flush(sums: [__m256i; 2], scale: f32, total: *mut f32) {
        // SAFETY: see the trait.
        unsafe {
            let odd = sums[1];
            let even = _mm256_sub_epi16(sums[0], _mm256_slli_epi16::<8>(odd));
            // Rows 0..8 and 16..24, rows 8..16 and 24..32.
            let (a, b) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
            let scale = _mm256_set1_ps(scale);
            add_scaled(_mm256_castsi256_si128(a), scale, total);
            add_scaled(_mm256_castsi256_si128(b), scale, total.add(8));
            add_scaled(_mm256_extracti128_si256::<1>(a), scale, total.add(16));
            add_scaled(_mm256_extracti128_si256::<1>(b), scale, total.add(24));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see the trait.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
}

/// 32 products as 16-bit integers, in the order that packs of 128-bit lanes leave.
#[inline(always)]
unsafe fn round32(values: *const f32, factor: f32) -> (__m256i, __m256i) {
    // SAFETY: the callers' promises, for 32 values.
    unsafe {
        let factor = _mm256_set1_ps(factor);
        let mut q = [_mm256_setzero_si256(); 4];
        for (i, q) in q.iter_mut().enumerate() {
            *q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values.add(8 * i)), factor));
        }
        (_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]))
    }
}

/// Stores 32 bytes, plus 128, that two packs of 128-bit lanes have left out of order.
#[inline(always)]
unsafe fn store_packed(out: *mut u8, bytes: __m256i) {
    // SAFETY: the callers' promises, for 32 bytes.
    unsafe {
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        _mm256_storeu_si256(out.cast(), _mm256_xor_si256(bytes, _mm256_set1_epi8(i8::MIN)));
    }
}

/// `total += scale * sums` for eight rows.
#[inline(always)]
unsafe fn add_scaled(sums: __m128i, scale: __m256, total: *mut f32) {
    // SAFETY: the callers' promises, for 8 floats.
    unsafe {
        let sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums));
        _mm256_storeu_ps(total, _mm256_fmadd_ps(scale, sums, _mm256_loadu_ps(total)));
    }
}

impl Bytes for Avx2 {
    #[inline(always)]
    unsafe fn splat_bytes(value: u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_set1_epi8(value as i8) }
    }

    #[inline(always)]
    unsafe fn add_bytes(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_add_epi8(a, b) }
    }

    #[inline(always)]
    unsafe fn store_words(bytes: [__m256i; 4], out: [*mut u8; 2]) {
        // SAFETY: see the trait.
        unsafe {
            let [a, b, c, d] = bytes;
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let (ab_up, cd_up) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
            // Of rows 0..16 in the lower halves and of rows 16..32 in the upper ones, four each.
            let fours = [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ab_up, cd_up),
                _mm256_unpackhi_epi16(ab_up, cd_up),
            ];
            for i in [0, 2] {
                let low = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 1]);
                let high = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 1]);
                _mm256_storeu_si256(out[0].add(16 * i).cast(), low);
                _mm256_storeu_si256(out[1].add(16 * i).cast(), high);
            }
        }
    }
}

/// AVX2 alone: products of magnitudes with the inputs' signs turned, since sums of two products of an
/// unsigned byte and a signed one do not fit into 16 bits if both are whole bytes.
#[derive(Clone, Copy)]
pub(crate) struct Signs;

impl Dot for Signs {
    const BIAS: i32 = 0;
    type Floats = Avx2;
    type Lanes = Avx2;
    type Sums = __m256i;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn sums(value: i32) -> __m256i {
        // SAFETY: see the trait.
        unsafe { Vnni::sums(value) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { Vnni::weights(from) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { Vnni::inputs(from) }
    }

    /// Magnitudes are at most 127, so that the sum of two products is at most 32258.
    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe {
            let signed = _mm256_sign_epi8(inputs, weights);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn weight(weights: __m256i, i: usize) -> __m256i {
        // SAFETY: see the trait.
        unsafe {
            let up = _mm256_sllv_epi32(weights, _mm256_set1_epi32(24 - 8 * i as i32));
            _mm256_srai_epi32::<24>(up)
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: __m256i) -> __m256 {
        // SAFETY: see the trait.
        unsafe { Vnni::floats(sums) }
    }
}

/// AVX2 with the dot products of AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Dot for Vnni {
    const BIAS: i32 = 128;
    type Floats = Avx2;
    type Lanes = Avx2;
    type Sums = __m256i;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn sums(value: i32) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn inputs(from: *const u8) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
        // SAFETY: see the trait.
        unsafe { _mm256_dpbusd_avx_epi32(sums, weights, inputs) }
    }

    #[inline(always)]
    unsafe fn weight(weights: __m256i, i: usize) -> __m256i {
        // SAFETY: see the trait.
        unsafe {
            let byte = _mm256_srlv_epi32(weights, _mm256_set1_epi32(8 * i as i32));
            let byte = _mm256_and_si256(byte, _mm256_set1_epi32(255));
            _mm256_sub_epi32(byte, _mm256_set1_epi32(Self::BIAS))
        }
    }

    #[inline(always)]
    unsafe fn floats(sums: __m256i) -> __m256 {
        // SAFETY: see the trait.
        unsafe { _mm256_cvtepi32_ps(sums) }
    }
}
