//! The gap measured on random inputs (`--eval-cols`): a check of the closed form by simulation.

use format::MatrixShape;
use numerics::MatMul;
use numerics::metrics::ratio;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Inputs multiplied at once: enough for a fast product, few enough for little memory.
const COLUMNS_AT_ONCE: usize = 64;

/// `sqrt(sum |D x|^2 / sum |W x|^2)` over `n_columns` random inputs x with independent entries
/// x_i ~ N(0, h_i), where D is the difference to W and h the importance (white inputs: h = 1).
///
/// # Shapes
/// `weights`, `difference`: `[d_in, d_out]`; `importance`: `[d_in]`, or [d_in, n] for each of n equal parts of the rows.
#[must_use]
pub fn random_gap(
    weights: &[f32],
    difference: &[f32],
    shape: MatrixShape,
    importance: Option<&[f32]>,
    n_columns: usize,
    seed: u64,
    mul_mat: &dyn MatMul,
) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n_parts = importance.map_or(1, |h| h.len() / shape.d_in);
    let part = weights.len() / n_parts;
    let (mut error, mut energy) = (0.0, 0.0);
    for (i, (weights, difference)) in weights.chunks(part).zip(difference.chunks(part)).enumerate()
    {
        let importance = importance.map(|h| &h[i * shape.d_in..][..shape.d_in]);
        let mut left = n_columns;
        while left > 0 {
            let n = left.min(COLUMNS_AT_ONCE);
            left -= n;
            let mut x: Vec<f32> =
                (0..n * shape.d_in).map(|_| StandardNormal.sample(&mut rng)).collect();
            if let Some(h) = importance {
                for column in x.chunks_mut(shape.d_in) {
                    column.iter_mut().zip(h).for_each(|(x, h)| *x *= h.sqrt());
                }
            }
            let mut y = vec![0.0; n * weights.len() / shape.d_in];
            let mut sum_squares = |matrix| {
                mul_mat.mul_mat(matrix, &x, shape.d_in, &mut y);
                y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
            };
            error += sum_squares(difference);
            energy += sum_squares(weights);
        }
    }
    ratio(error, energy).sqrt()
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;
    use numerics::metrics::Metrics;

    use super::*;

    /// Half the inputs of the test give twice the variance: 4096 inputs of 32 entries keep the estimate
    /// well within this of the closed form.
    const TOLERANCE: f64 = 0.02;

    #[test]
    fn the_simulation_agrees_with_the_closed_form() {
        let shape = MatrixShape::new(32, 16);
        let w: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
        let approx: Vec<f32> = w.iter().map(|v| (v * 3.0).round() / 3.0).collect();
        let difference: Vec<f32> = w.iter().zip(&approx).map(|(w, a)| w - a).collect();
        let h: Vec<f32> = (0..32).map(|i| 0.1 + (i as f32) / 8.0).collect();
        let of_halves: Vec<f32> = h.iter().chain(h.iter().rev()).copied().collect();
        for importance in [None, Some(h.as_slice()), Some(&of_halves)] {
            let exact = Metrics::compare(&w, &approx, shape, importance).gap;
            let estimate =
                random_gap(&w, &difference, shape, importance, 4096, 7, &ReferenceMatMul);
            assert!((estimate / exact - 1.0).abs() < TOLERANCE, "{estimate} against {exact}");
        }
    }
}
