//! Row scales for an existing encoding that lacks them.

use format::{CodecError, MatrixShape, Sidecar, f16_clamped};
use half::f16;
use numerics::check_finite;
use rayon::prelude::*;

use super::GlobalParts;
use format::global::ROW_SCALE;

/// The least-squares scale of every row for the atoms, codes and coefficients in `sidecars`; a row scale
/// already among them is ignored.
///
/// # Shapes
/// `weights`: [d_in, d_out]; `importance`: `[d_in]`, mean squares of the inputs, or `None` for white
/// inputs; the result is `row_scale`, `[d_out]` F16.
///
/// # Errors
/// [`CodecError::Sidecar`] if `dict` or `codes` are missing or malformed, [`CodecError::NonFinite`] for
/// damaged weights.
///
/// # Panics
/// If `weights` or `importance` do not fit `shape`.
pub fn complete_row_scale(
    sidecars: &[Sidecar],
    weights: &[f32],
    shape: MatrixShape,
    importance: Option<&[f32]>,
) -> Result<Sidecar, CodecError> {
    assert_eq!(weights.len(), shape.n_weights(), "weights do not fill {shape}");
    assert!(importance.is_none_or(|h| h.len() == shape.d_in), "importance does not fit {shape}");
    check_finite(weights, shape)?;
    let parts = GlobalParts::read(sidecars, shape)?;
    let scale = |sum: &mut Vec<f32>, (row, w): (usize, &[f32])| {
        sum.resize(shape.d_in, 0.0);
        parts.sum_atoms(row, sum);
        row_scale(w, sum, importance)
    };
    let scales: Vec<f16> =
        weights.par_chunks_exact(shape.d_in).enumerate().map_init(Vec::new, scale).collect();
    Ok(Sidecar::from_f16(ROW_SCALE, &[shape.d_out], &scales))
}

/// `<w, v> / <v, v>` in the metric of `importance`; 0 where v is zero.
fn row_scale(w: &[f32], v: &[f32], importance: Option<&[f32]>) -> f16 {
    let (mut dot, mut square) = (0.0f64, 0.0f64);
    for i in 0..w.len() {
        let h = importance.map_or(1.0, |h| f64::from(h[i]));
        dot += h * f64::from(w[i]) * f64::from(v[i]);
        square += h * f64::from(v[i]) * f64::from(v[i]);
    }
    f16_clamped(if square > 0.0 { (dot / square) as f32 } else { 0.0 })
}
