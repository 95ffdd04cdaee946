//! Small helpers that several kernels share.

use half::f16;

/// F16 to F32, right for all finite values and nothing else; unlike the library's conversion it
/// vectorizes without run-time detection. The shifted bits read as F32 are 2^-112 times the value.
#[inline(always)]
pub(crate) fn finite_f16(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// How many tokens a kernel that reads interleaved inputs takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// One token, straight from the input.
    One,
    /// Up to [`NARROW`] tokens.
    Narrow,
    /// Up to [`WIDE`] tokens.
    Wide,
}

/// Tokens of a wide table row, a cache line, and of a narrow one, half of it.
pub(crate) const WIDE: usize = 16;
pub(crate) const NARROW: usize = 8;
/// Largest table of `WIDE` tokens: beyond that it falls out of the second-level cache.
const WIDE_TABLE_BYTES: usize = 384 << 10;
/// Fewest tokens for which a table of `NARROW` tokens is faster than one token after the other.
const MIN_TOKENS: usize = 3;

impl Batch {
    /// The batch for the next of `n_left` tokens of a kernel whose table has `n_entries` per token.
    pub(crate) fn next(n_left: usize, n_entries: usize) -> Self {
        if n_left < MIN_TOKENS {
            Self::One
        } else if n_left > NARROW && n_entries * WIDE * size_of::<f32>() <= WIDE_TABLE_BYTES {
            Self::Wide
        } else {
            Self::Narrow
        }
    }
}
