//! Sums of what is lacking times what is seen.

use calibration::by_value;
use numerics::MatMul;

/// Sum over tokens of lack x^T.
#[derive(Default)]
pub(crate) struct Shortfall {
    n_tokens: usize,
    /// [d_in, any].
    sum: Vec<f32>,
    product: Vec<f32>,
    /// Inputs and what lacks, by value.
    transposed: [Vec<f32>; 2],
}

impl Shortfall {
    /// Adds tokens.
    ///
    /// # Shapes
    /// `lack`: [any, tokens], `input`: [d_in, tokens].
    pub(crate) fn add(&mut self, lack: &[f32], input: &[f32], d_in: usize, mul_mat: &dyn MatMul) {
        let n = input.len() / d_in;
        let size = lack.len() / n * d_in;
        self.sum.resize(size, 0.0);
        self.product.resize(size, 0.0);
        let [inputs, lacks] = &mut self.transposed;
        by_value(lack, lack.len() / n, lacks);
        by_value(input, d_in, inputs);
        mul_mat.mul_mat(inputs, lacks, n, &mut self.product);
        self.sum.iter_mut().zip(&self.product).for_each(|(s, p)| *s += p);
        self.n_tokens += n;
    }

    /// The mean, [d_in, any]; `None` of no tokens.
    pub(crate) fn mean(&self) -> Option<Vec<f32>> {
        let mean = |sum: &f32| (f64::from(*sum) / self.n_tokens as f64) as f32;
        (self.n_tokens > 0).then(|| self.sum.iter().map(mean).collect())
    }
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;

    #[test]
    fn means_are_those_of_all_tokens() {
        let (lack, input) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 5.0, 1.0, 1.0]);
        let mut sum = Shortfall::default();
        assert!(sum.mean().is_none());
        sum.add(&lack, &input, 3, &ReferenceMatMul);
        sum.add(&lack[..2], &input[..3], 3, &ReferenceMatMul);
        // E[lack_i x_j], x fastest.
        let expected = [17.0, 3.0, 7.0, 24.0, 4.0, 12.0].map(|v: f32| v / 3.0);
        assert_eq!(sum.mean().unwrap(), expected);
    }
}
