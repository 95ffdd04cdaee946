//! Small helpers that several kernels share.

use std::ops::Range;

use half::f16;

use crate::Columns;

/// F16 to F32, right for all finite values and nothing else; unlike the library's conversion it
/// vectorizes without run-time detection. The shifted bits read as F32 are 2^-112 times the value.
#[inline(always)]
pub(crate) fn finite_f16(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Fills `table[i][j]` with value `i` of the `j`-th of up to `T` tokens, and zero for missing tokens.
pub(crate) fn interleave<const T: usize>(
    x: Columns<'_>,
    tokens: Range<usize>,
    table: &mut [[f32; T]],
) {
    if tokens.len() < T {
        table.fill([0.0; T]);
    }
    // A few values at a time: reading T tokens in parallel all the way would let them evict each
    // other, since they usually lie a power of two apart.
    const VALUES: usize = 16;
    for (block, table) in table.chunks_mut(VALUES).enumerate() {
        for (j, t) in tokens.clone().enumerate() {
            let x = &x.token(t)[block * VALUES..][..table.len()];
            for (entry, &x) in table.iter_mut().zip(x) {
                entry[j] = x;
            }
        }
    }
}
