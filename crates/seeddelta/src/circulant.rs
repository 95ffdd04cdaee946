//! The fit of a circulant base.

use format::MatrixShape;
use format::seeddelta::Circulant;

use crate::weights::Weights;

/// Nearest circulant: the spaces `r - i = t (mod n)` are orthogonal and each is one-dimensional, so
/// `c[t] = sum g_r h_i w[r, i] / sum g_r^2 h_i` over the entries of W with that difference.
pub(crate) fn fit(wanted: &[f32], shape: MatrixShape, weights: &Weights<'_>) -> Circulant {
    let n = shape.d_in.max(shape.d_out);
    let mut means = vec![weights.mean(); n];
    for (row, w) in wanted.chunks(shape.d_in).enumerate() {
        for (i, &w) in w.iter().enumerate() {
            means[(row + n - i) % n].add(row, i, w);
        }
    }
    Circulant { shape, column: means.iter().map(|m| m.value()).collect() }
}
