//! What a matrix should be when earlier errors have changed its inputs.

use faer::Mat;

use crate::MatMul;
use crate::linalg::{cholesky, solve_with};

/// The damped second moment of changed inputs, factored once for all matrices that read them.
pub struct Retarget {
    d_in: usize,
    factor: Mat<f64>,
}

impl Retarget {
    /// For inputs x' with second moment `moment`, to whose diagonal `damping` times its mean is added, as for the
    /// encoder. `None` if that cannot be inverted.
    ///
    /// # Shapes
    /// `moment`: [d_in, d_in].
    ///
    /// # Panics
    /// If a size is wrong.
    #[must_use]
    pub fn new(moment: &[f32], d_in: usize, damping: f64) -> Option<Self> {
        assert_eq!(Some(moment.len()), d_in.checked_mul(d_in), "a moment of {d_in} inputs");
        let trace: f64 = (0..d_in).map(|i| f64::from(moment[i * d_in + i])).sum();
        let added = damping * trace / d_in as f64;
        let mut factor = Mat::from_fn(d_in, d_in, |i, j| {
            let value = f64::from(moment[i * d_in + j]);
            if i == j { value + added } else { value }
        });
        cholesky(&mut factor).then_some(Self { d_in, factor })
    }

    /// The matrix whose outputs on the changed inputs x' come closest to wanted outputs y: with the shortfall
    /// B = E[(y - W x') x'^T] it is `W + B (H' + damping)^-1`, where H' = E[x' x'^T]. `None` if the result is not
    /// finite.
    ///
    /// # Shapes
    /// `weights` = W, `shortfall` = B and the result: [d_in, d_out].
    ///
    /// # Panics
    /// If a size is wrong.
    #[must_use]
    pub fn target(&self, weights: &[f32], shortfall: &[f32]) -> Option<Vec<f32>> {
        let d_in = self.d_in;
        assert!(weights.len().is_multiple_of(d_in), "whole rows of {d_in} weights");
        assert_eq!(weights.len(), shortfall.len(), "a shortfall for every weight");
        let d_out = weights.len() / d_in;
        let mut change = Mat::from_fn(d_in, d_out, |i, row| f64::from(shortfall[row * d_in + i]));
        solve_with(&self.factor, &mut change);
        let changed = |(at, w): (usize, &f32)| *w + change[(at % d_in, at / d_in)] as f32;
        let target: Vec<f32> = weights.iter().enumerate().map(changed).collect();
        target.iter().all(|w| w.is_finite()).then_some(target)
    }
}

/// The share of the way from `weights` to `target`, 0 to 1, at which |y - W x'|^2 is least on average, where shortfall and
/// moment are as for [`Retarget`] but of other inputs than those that the target was fitted to: 0 if no part of the way
/// helps.
///
/// # Shapes
/// `weights`, `target` and `shortfall`: [d_in, d_out]; `moment`: [d_in, d_in].
///
/// # Panics
/// If a size is wrong.
#[must_use]
pub fn best_share(
    (weights, target): (&[f32], &[f32]),
    shortfall: &[f32],
    moment: &[f32],
    d_in: usize,
    mul_mat: &dyn MatMul,
) -> f64 {
    let change: Vec<f32> = target.iter().zip(weights).map(|(t, w)| t - w).collect();
    let mut image = vec![0.0; weights.len()];
    mul_mat.mul_mat(moment, &change, d_in, &mut image);
    let sum = |a: &[f32]| -> f64 {
        a.iter().zip(&change).map(|(a, c)| f64::from(*a) * f64::from(*c)).sum()
    };
    // |y - (W + s C) x'|^2 is a parabola in s.
    let share = sum(shortfall) / sum(&image);
    if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use format::MatrixShape;

    use super::*;
    use crate::ReferenceMatMul;
    use crate::testing::uniform;

    const SHAPE: MatrixShape = MatrixShape { d_in: 6, d_out: 3 };

    fn retarget(w: &[f32], shortfall: &[f32], moment: &[f32], damping: f64) -> Option<Vec<f32>> {
        Retarget::new(moment, SHAPE.d_in, damping)?.target(w, shortfall)
    }

    /// 200 inputs, and for each what a known matrix makes of it.
    fn pairs(matrix: &[f32]) -> Vec<(Vec<f32>, Vec<f32>)> {
        let mut random = uniform(3);
        let pair = |_| {
            let x: Vec<f32> = (0..SHAPE.d_in).map(|_| random()).collect();
            let y = matrix.chunks(SHAPE.d_in).map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum());
            (y.collect(), x)
        };
        (0..200).map(pair).map(|(y, x)| (x, y)).collect()
    }

    /// Mean of a b^T over pairs, [b.len(), a.len()].
    fn mean<'a>(pairs: impl Iterator<Item = (Vec<f32>, &'a [f32])>) -> Vec<f32> {
        let (mut sum, mut n) = (Vec::new(), 0);
        for (a, b) in pairs {
            let products: Vec<f32> = a.iter().flat_map(|a| b.iter().map(move |b| a * b)).collect();
            sum.resize(products.len(), 0.0);
            sum.iter_mut().zip(products).for_each(|(s, p)| *s += p);
            n += 1;
        }
        sum.iter().map(|s| s / n as f32).collect()
    }

    #[test]
    fn finds_the_matrix_that_gives_what_is_wanted() {
        let wanted: Vec<f32> = (0..18).map(|i| (i as f32).sin()).collect();
        let weights: Vec<f32> = wanted.iter().map(|w| w + 0.2 * (7.0 * w).cos()).collect();
        let pairs = pairs(&wanted);
        let missing = |(x, y): &(Vec<f32>, Vec<f32>)| -> Vec<f32> {
            let row = |(w, y): (&[f32], &f32)| y - w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
            weights.chunks(SHAPE.d_in).zip(y).map(row).collect()
        };
        let shortfall = mean(pairs.iter().map(|p| (missing(p), p.0.as_slice())));
        let moment = mean(pairs.iter().map(|(x, _)| (x.clone(), x.as_slice())));
        let target = retarget(&weights, &shortfall, &moment, 0.0).unwrap();
        for (a, b) in target.iter().zip(&wanted) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        // All of the way is right; where the target goes twice as far, half of it; in the other direction, none.
        let share = |end: &[f32], shortfall: &[f32]| {
            best_share((&weights, end), shortfall, &moment, SHAPE.d_in, &ReferenceMatMul)
        };
        let beyond = |f: f32| -> Vec<f32> {
            weights.iter().zip(&target).map(|(w, t)| w + f * (t - w)).collect()
        };
        assert!((share(&target, &shortfall) - 1.0).abs() < 1e-4);
        assert!((share(&beyond(2.0), &shortfall) - 0.5).abs() < 1e-4);
        assert_eq!(share(&beyond(-1.0), &shortfall), 0.0);
        assert_eq!(share(&weights, &shortfall), 0.0);
        // damping draws it back to the weights
        let damped = retarget(&weights, &shortfall, &moment, 1e6).unwrap();
        for (a, b) in damped.iter().zip(&weights) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn a_moment_without_an_inverse_gives_nothing() {
        let singular = vec![1.0; 36];
        assert!(retarget(&[1.0; 18], &[1.0; 18], &singular, 0.0).is_none());
        assert!(retarget(&[1.0; 18], &[1.0; 18], &singular, 0.1).is_some());
    }
}
