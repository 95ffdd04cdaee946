//! What the unit tests of this crate share.

/// Numbers from -0.5 to 0.5 (a linear congruential generator), the same for the same seed.
pub(crate) fn uniform(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    }
}
