//! The fits of bases on tiles along the (wrapped) diagonal: identity, diagonal and block diagonal.

use format::MatrixShape;
use format::seeddelta::{Identity, Tiles, Tiling};

use crate::weights::Weights;

/// `c = sum g_r h_i w / sum g_r^2 h_i` over the tiles of size 1.
pub(crate) fn fit_identity(wanted: &[f32], shape: MatrixShape, weights: &Weights<'_>) -> Identity {
    let tiling = Tiling::new(shape, 1);
    let mut mean = weights.mean();
    for row in 0..shape.d_out {
        tiling.for_row(row, |columns, _| {
            mean.add(row, columns.start, wanted[row * shape.d_in + columns.start]);
        });
    }
    Identity { tiling, scale: mean.value() }
}

/// The weights themselves, divided by the row's gain: each is its own parameter.
pub(crate) fn fit(wanted: &[f32], shape: MatrixShape, size: usize, weights: &Weights<'_>) -> Tiles {
    let tiling = Tiling::new(shape, size);
    let mut values = vec![0.0; size * size * tiling.n_tiles()];
    for row in 0..shape.d_out {
        let inverse = weights.inverse_gain(row);
        tiling.for_row(row, |columns, start| {
            let source = &wanted[row * shape.d_in..][columns.clone()];
            for (value, w) in values[start..][..columns.len()].iter_mut().zip(source) {
                *value = w * inverse;
            }
        });
    }
    Tiles { tiling, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_the_weighted_mean_of_its_tiles() {
        let shape = MatrixShape::new(2, 2);
        let w = [1.0, 9.0, 9.0, 4.0];
        assert_eq!(fit_identity(&w, shape, &Weights::default()).scale, 2.5);
        let h = [3.0, 1.0];
        let weights = Weights { importance: Some(&h), gains: None };
        assert_eq!(fit_identity(&w, shape, &weights).scale, 1.75);
    }
}
