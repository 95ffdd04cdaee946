//! Quality of an approximation of a weight matrix, defined once for all codecs and reports.

use format::MatrixShape;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Errors of an approximation W^ of W.
///
/// For inputs x with E[x x^T] = diag(h) (white: h = 1):
/// `gap = sqrt(E|(W - W^) x|^2 / E|W x|^2)`; `rel_error = gap^2`; the cosines are between rows of W and
/// W^ in the same metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Root of the relative squared error.
    pub gap: f64,
    /// Relative squared error.
    pub rel_error: f64,
    /// Mean over rows of the cosine between a row and its approximation.
    pub cos_mean: f64,
    /// 5th percentile (nearest rank) of the same cosine.
    pub cos_p05: f64,
    /// sum_ri h_i (w_ri - w^_ri)^2, so that totals over tensors can be formed.
    pub error_energy: f64,
    /// sum_ri h_i w_ri^2.
    pub weight_energy: f64,
}

/// Sums over one row.
struct RowSums {
    error: f64,
    weight: f64,
    cos: f64,
}

impl Metrics {
    /// Metrics of `approx` against `weights` for inputs with mean squares `importance`.
    ///
    /// A row of zeros has cosine 1 with a row of zeros and 0 with any other. Sums are formed per row
    /// and then in row order, so the result does not depend on the number of threads.
    ///
    /// # Shapes
    /// `weights`, `approx`: [d_in, d_out]; `importance`: `[d_in]`, [d_in, n] for each of n equal parts of the rows, or `None` for
    /// white inputs.
    ///
    /// # Panics
    /// If a length does not fit `shape`.
    #[must_use]
    pub fn compare(
        weights: &[f32],
        approx: &[f32],
        shape: MatrixShape,
        importance: Option<&[f32]>,
    ) -> Self {
        assert_eq!(weights.len(), shape.n_weights());
        assert_eq!(approx.len(), shape.n_weights());
        let n_parts = importance.map_or(1, |h| h.len() / shape.d_in);
        assert!(importance.is_none_or(|h| h.len() == n_parts * shape.d_in));
        assert!(n_parts > 0 && shape.d_out.is_multiple_of(n_parts), "equal parts");
        let of_part = |row: usize| {
            let part = row / (shape.d_out / n_parts);
            importance.map(|h| &h[part * shape.d_in..][..shape.d_in])
        };
        let rows: Vec<RowSums> = weights
            .par_chunks(shape.d_in)
            .zip(approx.par_chunks(shape.d_in))
            .enumerate()
            .map(|(row, (w, a))| row_sums(w, a, of_part(row)))
            .collect();
        Self::from_rows(&rows)
    }

    fn from_rows(rows: &[RowSums]) -> Self {
        let error_energy: f64 = rows.iter().map(|r| r.error).sum();
        let weight_energy: f64 = rows.iter().map(|r| r.weight).sum();
        let mut cosines: Vec<f64> = rows.iter().map(|r| r.cos).collect();
        cosines.sort_by(f64::total_cmp);
        let rank = (cosines.len() as f64 * 0.05).ceil().max(1.0) as usize;
        let rel_error = ratio(error_energy, weight_energy);
        Self {
            gap: rel_error.sqrt(),
            rel_error,
            cos_mean: cosines.iter().sum::<f64>() / cosines.len().max(1) as f64,
            cos_p05: cosines.get(rank - 1).copied().unwrap_or(1.0),
            error_energy,
            weight_energy,
        }
    }
}

/// `error / energy`, where nothing lost of nothing is 0.
#[must_use]
pub fn ratio(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / energy }
}

fn row_sums(w: &[f32], a: &[f32], importance: Option<&[f32]>) -> RowSums {
    let (mut error, mut weight, mut approx, mut dot) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..w.len() {
        let h = importance.map_or(1.0, |h| f64::from(h[i]));
        let (w, a) = (f64::from(w[i]), f64::from(a[i]));
        error += h * (w - a) * (w - a);
        weight += h * w * w;
        approx += h * a * a;
        dot += h * w * a;
    }
    let norm = (weight * approx).sqrt();
    let cos = if norm > 0.0 { dot / norm } else { f64::from(u8::from(weight == approx)) };
    RowSums { error, weight, cos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_copy_has_no_gap() {
        let w: Vec<f32> = (0..12).map(|i| i as f32 - 5.5).collect();
        let m = Metrics::compare(&w, &w, MatrixShape::new(4, 3), None);
        assert_eq!((m.gap, m.rel_error), (0.0, 0.0));
        assert!((m.cos_mean - 1.0).abs() < 1e-12 && (m.cos_p05 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn half_scale_has_gap_one_half_and_cosine_one() {
        let w: Vec<f32> = (1..=12).map(|i| i as f32).collect();
        let a: Vec<f32> = w.iter().map(|v| v * 0.5).collect();
        let m = Metrics::compare(&w, &a, MatrixShape::new(4, 3), None);
        assert!((m.gap - 0.5).abs() < 1e-12);
        assert!((m.cos_mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn importance_weighs_columns() {
        // error 1 in column 0, none in column 1
        let m = |h: &[f32]| {
            Metrics::compare(&[1.0, 1.0], &[0.0, 1.0], MatrixShape::new(2, 1), Some(h)).rel_error
        };
        assert!((m(&[1.0, 1.0]) - 0.5).abs() < 1e-12);
        assert!((m(&[1.0, 3.0]) - 0.25).abs() < 1e-12);
        assert!((m(&[0.0, 3.0])).abs() < 1e-12);
    }

    #[test]
    fn parts_of_the_rows_have_an_importance_of_their_own() {
        // errors of 1 in column 0 of the first row and in column 1 of the second
        let (w, a) = ([1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]);
        let shape = MatrixShape::new(2, 2);
        let m = Metrics::compare(&w, &a, shape, Some(&[2.0, 0.0, 0.0, 2.0]));
        assert_eq!((m.error_energy, m.weight_energy), (4.0, 4.0));
        let m = Metrics::compare(&w, &a, shape, Some(&[0.0, 2.0, 2.0, 0.0]));
        assert_eq!((m.error_energy, m.gap), (0.0, 0.0));
    }

    #[test]
    fn zero_rows() {
        let shape = MatrixShape::new(2, 1);
        assert_eq!(Metrics::compare(&[0.0; 2], &[0.0; 2], shape, None).cos_mean, 1.0);
        let m = Metrics::compare(&[0.0; 2], &[1.0, 0.0], shape, None);
        assert_eq!(m.cos_mean, 0.0);
        assert!(m.gap.is_infinite());
    }
}
