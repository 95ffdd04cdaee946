//! What a matrix should be when earlier errors have changed its inputs.

use std::ops::Range;

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

/// How often the spans of an input are gone through: what correlates between them is found by and by.
const SWEEPS: usize = 2;

/// Sampled inputs too many to a token for a whole second moment, and what the outputs lack on each.
pub struct SampledLack<'a> {
    /// Values of an input.
    pub d_in: usize,
    /// The values of a range of inputs, input by input: [samples, range].
    pub by_input: &'a dyn Fn(Range<usize>) -> Vec<f32>,
    /// What the outputs lack, output by output: [samples, d_out].
    pub by_output: Vec<f32>,
}

impl SampledLack<'_> {
    /// The change of a matrix that makes up for what is lacking, [d_in, d_out]: span by span of `width` inputs, each making
    /// up for what the others have left (two sweeps of block Gauss-Seidel over the normal equations of
    /// [`Retarget::target`], whose whole moment is never formed). `None` if a span's moment cannot be inverted.
    ///
    /// # Panics
    /// If a size is wrong.
    #[must_use]
    pub fn change(mut self, width: usize, damping: f64, mul_mat: &dyn MatMul) -> Option<Vec<f32>> {
        let d_in = self.d_in;
        let n = (self.by_input)(0..1).len();
        let d_out = self.by_output.len() / n;
        let mut change = vec![0.0; d_in * d_out];
        let spans = (0..d_in).step_by(width);
        for start in std::iter::repeat_n(spans, SWEEPS).flatten() {
            let span = start..d_in.min(start + width);
            let n_in = span.len();
            let inputs = (self.by_input)(span.clone());
            let mean = |a: &[f32], b: &[f32]| {
                let mut out = vec![0.0; a.len() / n * (b.len() / n)];
                mul_mat.mul_mat(a, b, n, &mut out);
                out.iter_mut().for_each(|v| *v /= n as f32);
                out
            };
            let (moment, shortfall) = (mean(&inputs, &inputs), mean(&inputs, &self.by_output));
            let retarget = Retarget::new(&moment, n_in, damping)?;
            let part = retarget.target(&vec![0.0; shortfall.len()], &shortfall)?;
            let by_token = transposed(&inputs, n);
            let mut made_up = vec![0.0; self.by_output.len()];
            mul_mat.mul_mat(&by_token, &part, n_in, &mut made_up);
            self.by_output.iter_mut().zip(&made_up).for_each(|(lack, made)| *lack -= made);
            for (row, part) in change.chunks_mut(d_in).zip(part.chunks(n_in)) {
                row[span.clone()].iter_mut().zip(part).for_each(|(sum, c)| *sum += c);
            }
        }
        Some(change)
    }
}

/// [k, n] -> [n, k].
fn transposed(values: &[f32], k: usize) -> Vec<f32> {
    let n = values.len() / k;
    (0..values.len()).map(|at| values[at % n * k + at / n]).collect()
}

/// The share of a change at which |lack - share * made|^2 is least, 0 to 1, where `made` is what all of the change makes of
/// inputs that it was not fitted to: 0 if no part of it helps.
#[must_use]
pub fn best_share_of(lack: &[f32], made: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    share(dot(lack, made), dot(made, made))
}

/// Where the parabola `curvature s^2 - 2 slope s` is least between 0 and 1; 0 if that cannot be told.
fn share(slope: f64, curvature: f64) -> f64 {
    let share = slope / curvature;
    if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
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
    share(sum(shortfall), sum(&image))
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

    /// What is lacking is what a known matrix makes of the inputs.
    #[test]
    fn span_by_span_the_rest_is_made_up_for() {
        let wanted: Vec<f32> = (0..18).map(|i| (i as f32).sin()).collect();
        let pairs = pairs(&wanted);
        let n = pairs.len();
        let by_input = |range: Range<usize>| -> Vec<f32> {
            range.flat_map(|i| pairs.iter().map(move |(x, _)| x[i])).collect()
        };
        let by_output: Vec<f32> =
            (0..SHAPE.d_out).flat_map(|o| pairs.iter().map(move |(_, y)| y[o])).collect();
        let change = |width| {
            let (by_input, by_output) = (&by_input as &dyn Fn(_) -> _, by_output.clone());
            let lack = SampledLack { d_in: SHAPE.d_in, by_input, by_output };
            lack.change(width, 0.0, &ReferenceMatMul).unwrap()
        };
        let whole = change(SHAPE.d_in);
        for (a, b) in whole.iter().zip(&wanted) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        // In spans of two most of it: the inputs are nearly uncorrelated.
        let made = |change: &[f32], i: usize| -> Vec<f32> {
            let row = |w: &[f32]| w.iter().zip(&pairs[i].0).map(|(w, x)| w * x).sum();
            change.chunks(SHAPE.d_in).map(row).collect()
        };
        let error = |change: &[f32]| -> f32 {
            let of = |i: usize| {
                made(change, i).iter().zip(&pairs[i].1).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
            };
            (0..n).map(of).sum()
        };
        let nothing = error(&[0.0; 18]);
        assert!(error(&change(2)) < 0.05 * nothing, "{} of {nothing}", error(&change(2)));
        let lack: Vec<f32> = pairs.iter().flat_map(|(_, y)| y.clone()).collect();
        let all: Vec<f32> = (0..n).flat_map(|i| made(&whole, i)).collect();
        let twice: Vec<f32> = all.iter().map(|v| 2.0 * v).collect();
        assert!((best_share_of(&lack, &all) - 1.0).abs() < 1e-4);
        assert!((best_share_of(&lack, &twice) - 0.5).abs() < 1e-4);
        let away: Vec<f32> = all.iter().map(|v| -v).collect();
        assert_eq!(best_share_of(&lack, &away), 0.0);
        assert_eq!(best_share_of(&lack, &vec![0.0; lack.len()]), 0.0);
    }

    #[test]
    fn a_moment_without_an_inverse_gives_nothing() {
        let singular = vec![1.0; 36];
        assert!(retarget(&[1.0; 18], &[1.0; 18], &singular, 0.0).is_none());
        assert!(retarget(&[1.0; 18], &[1.0; 18], &singular, 0.1).is_some());
    }
}
