//! Rounding to half precision without ever leaving the finite numbers.

use half::f16;

/// `v` in half precision; what is too large becomes the largest finite number of its sign.
pub(crate) fn to_f16_finite(v: f32) -> f16 {
    let limit = f16::MAX.to_f32();
    f16::from_f32(if v.is_nan() { 0.0 } else { v.clamp(-limit, limit) })
}

/// What storing `v` in half precision leaves of it.
pub(crate) fn round_f16(v: f32) -> f32 {
    to_f16_finite(v).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_finite() {
        for v in [1e9, -1e9, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65519.9, 65520.0] {
            assert!(round_f16(v).is_finite(), "{v}");
        }
        assert_eq!(round_f16(-1e9), -65504.0);
        assert_eq!(round_f16(0.5), 0.5);
    }
}
