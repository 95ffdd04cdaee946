//! The space in which atoms are learned and rows are fitted.

use format::{CodecError, MatrixShape};

use numerics::linalg::dot;

/// Smallest share of the mean importance that an input keeps: 0 would make its atoms' entries free.
const IMPORTANCE_FLOOR: f64 = 1e-6;

/// Scaling of the inputs: column i is multiplied by `sqrt(h_i)`, so that the squared distance between two
/// rows is their expected squared difference on inputs with E[x x^T] = diag(h); and the whole matrix by
/// a power of two that brings its entries near 1, so that no square overflows.
pub(crate) struct Metric {
    /// Factor of every input, `[d_in]`.
    pub(crate) factors: Vec<f32>,
    /// The power of two within `factors`.
    pub(crate) unit: f32,
}

impl Metric {
    /// Metric for `weights` of `shape` under `importance`, `[d_in]`; `None` or all zeros is white.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if `importance` has another length or is negative or not finite.
    pub(crate) fn new(
        weights: &[f32],
        shape: MatrixShape,
        importance: Option<&[f32]>,
    ) -> Result<Self, CodecError> {
        let unit = unit_of(weights);
        let Some(h) = importance else {
            return Ok(Self { factors: vec![unit; shape.d_in], unit });
        };
        let bad = |value: String, reason: &str| {
            let reason = reason.to_owned();
            Err(CodecError::Parameter { name: "--imatrix", value, shape, reason })
        };
        if h.len() != shape.d_in {
            return bad(format!("{} values", h.len()), "it needs one value per input");
        }
        if let Some(v) = h.iter().find(|v| !(v.is_finite() && **v >= 0.0)) {
            return bad(v.to_string(), "mean squares are finite and not negative");
        }
        let mean = h.iter().map(|&v| f64::from(v)).sum::<f64>() / h.len() as f64;
        let root = |v: f32| {
            if mean > 0.0 { (f64::from(v) / mean).max(IMPORTANCE_FLOOR).sqrt() as f32 } else { 1.0 }
        };
        Ok(Self { factors: h.iter().map(|&v| root(v) * unit).collect(), unit })
    }

    /// Writes the scaled `rows` to `out`, both [d_in, n].
    pub(crate) fn scale(&self, rows: &[f32], out: &mut [f32]) {
        let d = self.factors.len();
        for (out, row) in out.chunks_exact_mut(d).zip(rows.chunks_exact(d)) {
            for ((out, w), f) in out.iter_mut().zip(row).zip(&self.factors) {
                *out = w * f;
            }
        }
    }

    /// The row in the matrix's own units whose scaled form is `unit * atom`.
    pub(crate) fn unscale(&self, atom: &mut [f32]) {
        for (a, f) in atom.iter_mut().zip(&self.factors) {
            *a *= self.unit / f;
        }
    }

    /// The scaled form of `atom`, without the unit: the inverse of [`Self::unscale`].
    pub(crate) fn rescale(&self, atom: &mut [f32]) {
        for (a, f) in atom.iter_mut().zip(&self.factors) {
            *a *= f / self.unit;
        }
    }
}

/// Power of two that brings the root mean square of `weights` near 1.
fn unit_of(weights: &[f32]) -> f32 {
    let peak = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    if peak == 0.0 {
        return 1.0;
    }
    // squares of weights relative to the largest cannot overflow
    let sum: f64 = weights
        .chunks(4096)
        .map(|c| c.iter().map(|w| f64::from(w / peak).powi(2)).sum::<f64>())
        .sum();
    let rms = (sum / weights.len() as f64).sqrt() * f64::from(peak);
    (-rms.log2().round()).clamp(-100.0, 100.0).exp2() as f32
}

/// Squared norms of `atoms`, [d_in, n].
pub(crate) fn squared_norms(atoms: &[f32], d_in: usize) -> Vec<f32> {
    atoms.chunks_exact(d_in).map(|a| dot(a, a)).collect()
}
