//! Scores by which corrections are chosen, and the n-th largest of them without a list of all.

use format::{CodecError, MatrixShape};
use rayon::prelude::*;

use crate::check_finite;

/// What entries are chosen by. Scores are not negative, so their bits order as the numbers do.
pub(super) struct Score<'a> {
    residual: &'a [f32],
    shape: MatrixShape,
    sqrt_importance: Option<Vec<f32>>,
}

impl<'a> Score<'a> {
    pub(super) fn new(
        residual: &'a [f32],
        shape: MatrixShape,
        importance: Option<&[f32]>,
    ) -> Result<Self, CodecError> {
        assert_eq!(residual.len(), shape.n_weights());
        assert!(importance.is_none_or(|h| h.len() == shape.d_in));
        check_finite(residual, shape)?;
        let sqrt_importance = importance.map(|h| h.iter().map(|h| h.sqrt()).collect());
        Ok(Self { residual, shape, sqrt_importance })
    }

    pub(super) fn bits(&self, row: usize, column: usize) -> u32 {
        let r = self.residual[row * self.shape.d_in + column].abs();
        self.sqrt_importance.as_ref().map_or(r, |h| r * h[column]).to_bits()
    }

    /// Bits of the n-th largest score (n >= 1), and how many scores equal to it are among the n.
    ///
    /// Radix selection: two histograms of 16 bits each, so that no list of all scores is needed.
    pub(super) fn nth_largest(&self, n: usize) -> (u32, usize) {
        let (high, n) = descend(&self.histogram(|bits| Some(bits >> 16)), n);
        let low = self.histogram(|bits| (bits >> 16 == high).then_some(bits & 0xffff));
        let (low, n) = descend(&low, n);
        (high << 16 | low, n)
    }

    fn histogram(&self, key: impl Fn(u32) -> Option<u32> + Sync) -> Vec<usize> {
        let empty = || vec![0usize; 1 << 16];
        let count = |mut counts: Vec<usize>, row: usize| {
            for column in 0..self.shape.d_in {
                if let Some(key) = key(self.bits(row, column)) {
                    counts[key as usize] += 1;
                }
            }
            counts
        };
        let add = |mut a: Vec<usize>, b: Vec<usize>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        (0..self.shape.d_out).into_par_iter().fold(empty, count).reduce(empty, add)
    }
}

/// The bucket that holds the n-th largest key, and its rank among the keys of that bucket.
fn descend(counts: &[usize], mut n: usize) -> (u32, usize) {
    for (bucket, &count) in counts.iter().enumerate().rev() {
        if n <= count {
            return (bucket as u32, n);
        }
        n -= count;
    }
    unreachable!("n is at most the number of scores")
}
