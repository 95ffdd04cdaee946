//! What an approximation does to a matrix's outputs on real inputs.
//!
//! Two figures, because the first alone hides what matters: a ratio of sums is decided by the few tokens
//! with massive activations, a mean over tokens is not.

use format::MatrixShape;
use rayon::prelude::*;

use crate::MatMul;
use crate::metrics::ratio;

/// Rows of a matrix that one product takes: bounds the memory, and is fixed so that results do not
/// depend on the machine's size.
const ROWS: usize = 1024;

/// Tokens that one product takes.
const TOKENS: usize = 512;

/// Expected squared length of the outputs' error and of the outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FunctionalError {
    /// tr(E H E^T) for the error E = W - W^.
    pub error_energy: f64,
    /// tr(W H W^T).
    pub weight_energy: f64,
}

impl FunctionalError {
    /// `error_energy / weight_energy`: the ratio of sums over all tokens behind H.
    #[must_use]
    pub fn ratio(self) -> f64 {
        ratio(self.error_energy, self.weight_energy)
    }
}

/// Error of the outputs token by token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenError {
    /// Mean over tokens of |E x|^2 / |W x|^2. Tokens without output and without error count as 0.
    pub mean: f64,
    /// sum |E x|^2 / sum |W x|^2 over the same tokens.
    pub ratio_of_sums: f64,
}

/// Energies of `error` = W - W^ and of `weights` = W under the second moment `h` of the inputs (any
/// multiple of it gives the same ratio).
///
/// # Shapes
/// `error`, `weights`: [d_in, d_out]; `h`: [d_in, d_in], symmetric.
///
/// # Panics
/// If a length does not fit `shape`.
#[must_use]
pub fn functional_error(
    error: &[f32],
    weights: &[f32],
    shape: MatrixShape,
    h: &[f32],
    mat_mul: &dyn MatMul,
) -> FunctionalError {
    assert_eq!(error.len(), shape.n_weights());
    assert_eq!(weights.len(), shape.n_weights());
    assert_eq!(Some(h.len()), shape.d_in.checked_mul(shape.d_in));
    FunctionalError {
        error_energy: energy(error, shape.d_in, h, mat_mul),
        weight_energy: energy(weights, shape.d_in, h, mat_mul),
    }
}

/// tr(M H M^T) for `matrix` = M, [d, rows], and the symmetric `h`, [d, d]. Not below 0.
///
/// # Panics
/// If a length does not fit `d`.
#[must_use]
pub fn energy(matrix: &[f32], d: usize, h: &[f32], mat_mul: &dyn MatMul) -> f64 {
    assert_eq!(Some(h.len()), d.checked_mul(d));
    if matrix.is_empty() {
        return 0.0;
    }
    assert!(matrix.len().is_multiple_of(d), "the matrix must hold whole rows of {d} values");
    let mut product = Vec::new();
    let mut sum = 0.0;
    for rows in matrix.chunks(ROWS * d) {
        product.resize(rows.len(), 0.0);
        mat_mul.mul_mat(h, rows, d, &mut product);
        let dots: Vec<f64> =
            rows.par_chunks(d).zip(product.par_chunks(d)).map(|(a, b)| dot(a, b)).collect();
        sum += dots.iter().sum::<f64>();
    }
    // H is rounded, so the form may come out slightly negative where it should be 0.
    sum.max(0.0)
}

/// Error of the outputs on single inputs.
///
/// # Shapes
/// `error`, `weights`: [d_in, d_out]; `inputs`: [d_in, n].
///
/// # Panics
/// If a length does not fit `shape`.
#[must_use]
pub fn token_error(
    error: &[f32],
    weights: &[f32],
    shape: MatrixShape,
    inputs: &[f32],
    mat_mul: &dyn MatMul,
) -> TokenError {
    let errors = output_energies(error, shape, inputs, mat_mul);
    let outputs = output_energies(weights, shape, inputs, mat_mul);
    let ratios: f64 = errors.iter().zip(&outputs).map(|(&e, &w)| ratio(e, w)).sum();
    TokenError {
        mean: ratios / errors.len().max(1) as f64,
        ratio_of_sums: ratio(errors.iter().sum(), outputs.iter().sum()),
    }
}

/// |M x|^2 for every input.
///
/// # Shapes
/// `matrix`: [d_in, d_out]; `inputs`: [d_in, n] -> `[n]`.
///
/// # Panics
/// If a length does not fit `shape`.
#[must_use]
pub fn output_energies(
    matrix: &[f32],
    shape: MatrixShape,
    inputs: &[f32],
    mat_mul: &dyn MatMul,
) -> Vec<f64> {
    let MatrixShape { d_in, d_out } = shape;
    assert_eq!(matrix.len(), shape.n_weights());
    assert!(inputs.len().is_multiple_of(d_in), "inputs must be whole rows of {d_in} values");
    let mut energies = Vec::with_capacity(inputs.len() / d_in);
    let mut outputs = Vec::new();
    for batch in inputs.chunks(TOKENS * d_in) {
        outputs.resize(batch.len() / d_in * d_out, 0.0);
        mat_mul.mul_mat(matrix, batch, d_in, &mut outputs);
        energies.par_extend(outputs.par_chunks(d_out).map(|y| dot(y, y)));
    }
    energies
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ReferenceMatMul;
    use crate::metrics::Metrics;

    /// Rounding of F32 products of up to 20 values of size 1.
    const TOLERANCE: f64 = 1e-4;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= TOLERANCE * (1.0 + a.abs().max(b.abs()))
    }

    /// [d, n] inputs -> mean of x x^T, [d, d]
    fn moment(inputs: &[f32], d: usize) -> Vec<f32> {
        let n = (inputs.len() / d) as f32;
        let entry = |i: usize, j: usize| inputs.chunks(d).map(|x| x[i] * x[j]).sum::<f32>() / n;
        (0..d * d).map(|e| entry(e / d, e % d)).collect()
    }

    fn case() -> impl Strategy<Value = (MatrixShape, usize, Vec<f32>)> {
        (1usize..20, 1usize..20, 1usize..20).prop_flat_map(|(d_in, d_out, n)| {
            let len = 2 * d_in * d_out + d_in * n;
            let values = proptest::collection::vec(-1f32..1.0, len);
            (Just(MatrixShape::new(d_in, d_out)), Just(n), values)
        })
    }

    proptest! {
        #[test]
        fn both_ways_to_the_ratio_of_sums_agree((shape, n, values) in case()) {
            let (error, rest) = values.split_at(shape.n_weights());
            let (weights, inputs) = rest.split_at(shape.n_weights());
            let h = moment(inputs, shape.d_in);
            let by_moment = functional_error(error, weights, shape, &h, &ReferenceMatMul);
            let by_token = token_error(error, weights, shape, inputs, &ReferenceMatMul);
            let sums: f64 = output_energies(error, shape, inputs, &ReferenceMatMul).iter().sum();
            prop_assert!(close(by_moment.error_energy * n as f64, sums));
            prop_assume!(by_moment.weight_energy > 1e-2);
            prop_assert!(close(by_moment.ratio(), by_token.ratio_of_sums));
        }

        #[test]
        fn diagonal_moments_are_the_importance_of_the_weights_metric((shape, _, values) in case()) {
            let (weights, rest) = values.split_at(shape.n_weights());
            let (approx, inputs) = rest.split_at(shape.n_weights());
            let diagonal: Vec<f32> = inputs[..shape.d_in].iter().map(|v| v * v).collect();
            let mut h = vec![0.0; shape.d_in * shape.d_in];
            for (i, v) in diagonal.iter().enumerate() {
                h[i * shape.d_in + i] = *v;
            }
            let error: Vec<f32> = weights.iter().zip(approx).map(|(w, a)| w - a).collect();
            let ours = functional_error(&error, weights, shape, &h, &ReferenceMatMul);
            let known = Metrics::compare(weights, approx, shape, Some(&diagonal));
            prop_assert!(close(ours.error_energy, known.error_energy));
            prop_assert!(close(ours.weight_energy, known.weight_energy));
        }
    }

    #[test]
    fn one_massive_token_decides_the_ratio_of_sums_but_not_the_mean() {
        let shape = MatrixShape::new(2, 2);
        let (weights, error) = ([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]);
        // input 0 is kept exactly and massive in one token; input 1 is lost
        let inputs = [1000.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let result = token_error(&error, &weights, shape, &inputs, &ReferenceMatMul);
        assert!((result.mean - 0.75).abs() < 1e-12);
        assert!(result.ratio_of_sums < 1e-5);
    }

    #[test]
    fn nothing_lost_is_no_error_and_many_rows_are_summed() {
        let shape = MatrixShape::new(1, 3 * ROWS + 1);
        let weights = vec![2.0; shape.n_weights()];
        let none =
            functional_error(&vec![0.0; 3 * ROWS + 1], &weights, shape, &[0.5], &ReferenceMatMul);
        assert_eq!((none.ratio(), none.weight_energy), (0.0, 2.0 * (3 * ROWS + 1) as f64));
        let inputs = vec![1.0; TOKENS + 1];
        let energies = output_energies(&weights, shape, &inputs, &ReferenceMatMul);
        assert!(
            energies.len() == TOKENS + 1 && energies.iter().all(|&e| e == none.weight_energy * 2.0)
        );
        let empty = token_error(&weights, &weights, shape, &[], &ReferenceMatMul);
        assert_eq!(empty, TokenError::default());
    }
}
