//! Sums of what is lacking times what is seen.

use numerics::MatMul;

/// Tokens are padded with zeros to a multiple of this, which ggml's fast kernels need.
const TOKEN_PAD: usize = 16;

/// Sum over tokens of lack x^T.
#[derive(Default)]
pub(crate) struct Shortfall {
    n_tokens: usize,
    /// [d_in, any].
    sum: Vec<f32>,
    product: Vec<f32>,
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
        let padded = n.next_multiple_of(TOKEN_PAD);
        let (inputs, lacks) = (by_value(input, n, padded), by_value(lack, n, padded));
        mul_mat.mul_mat(&inputs, &lacks, padded, &mut self.product);
        self.sum.iter_mut().zip(&self.product).for_each(|(s, p)| *s += p);
        self.n_tokens += n;
    }

    /// The mean, [d_in, any]; `None` of no tokens.
    pub(crate) fn mean(&self) -> Option<Vec<f32>> {
        let mean = |sum: &f32| (f64::from(*sum) / self.n_tokens as f64) as f32;
        (self.n_tokens > 0).then(|| self.sum.iter().map(mean).collect())
    }
}

/// [d, n] -> [padded, d].
fn by_value(rows: &[f32], n: usize, padded: usize) -> Vec<f32> {
    let d = rows.len() / n;
    let mut out = vec![0.0; padded * d];
    for (token, row) in rows.chunks_exact(d).enumerate() {
        row.iter().enumerate().for_each(|(i, v)| out[i * padded + token] = *v);
    }
    out
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
