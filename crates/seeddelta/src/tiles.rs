//! Bases that live on tiles along the (wrapped) diagonal: identity, diagonal and block diagonal.

use std::ops::Range;

use codec::MatrixShape;

use crate::fit::Weights;

/// Tiles of size b: tile t joins input block `t mod n_in` with output block `t mod n_out`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tiling {
    shape: MatrixShape,
    size: usize,
    n_in: usize,
    n_out: usize,
}

impl Tiling {
    pub(crate) fn new(shape: MatrixShape, size: usize) -> Self {
        Self { shape, size, n_in: shape.d_in.div_ceil(size), n_out: shape.d_out.div_ceil(size) }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_in.max(self.n_out)
    }

    /// The inputs of tile `t`.
    fn columns(&self, t: usize) -> Range<usize> {
        let start = t % self.n_in * self.size;
        start..(start + self.size).min(self.shape.d_in)
    }

    /// The tiles that output `row` belongs to: one, or several in a wide matrix.
    fn tiles_of_row(&self, row: usize) -> impl Iterator<Item = usize> + use<> {
        (row / self.size..self.n_tiles()).step_by(self.n_out)
    }

    /// Calls `f(inputs, start of the row in a [b, b, tiles] tensor)` for each tile that `row` crosses.
    fn for_row(&self, row: usize, mut f: impl FnMut(Range<usize>, usize)) {
        for t in self.tiles_of_row(row) {
            let start = (t * self.size + row % self.size) * self.size;
            f(self.columns(t), start);
        }
    }
}

/// A multiple of the identity: one value on all tiles of size 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    pub(crate) tiling: Tiling,
    pub(crate) scale: f32,
}

impl Identity {
    /// `c = sum g_r h_i w / sum g_r^2 h_i` over the tiles.
    pub(crate) fn fit(target: &[f32], shape: MatrixShape, weights: &Weights<'_>) -> Self {
        let tiling = Tiling::new(shape, 1);
        let mut mean = weights.mean();
        for row in 0..shape.d_out {
            tiling.for_row(row, |columns, _| {
                mean.add(row, columns.start, target[row * shape.d_in + columns.start]);
            });
        }
        Self { tiling, scale: mean.value() }
    }

    pub(crate) fn add_row(&self, row: usize, gain: f32, out: &mut [f32]) {
        self.tiling.for_row(row, |columns, _| out[columns.start] += gain * self.scale);
    }

    /// Adds `rows` of the product to `y`.
    pub(crate) fn add_product(&self, rows: Range<usize>, x: &[f32], y: &mut [f32]) {
        for (row, y) in rows.zip(y) {
            self.tiling.for_row(row, |columns, _| *y += self.scale * x[columns.start]);
        }
    }
}

/// Dense tiles; of size 1 a diagonal matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tiles {
    pub(crate) tiling: Tiling,
    /// [b, b, tiles]: input, output, tile.
    pub(crate) values: Vec<f32>,
}

impl Tiles {
    /// The weights themselves, divided by the row's gain: each is its own parameter.
    pub(crate) fn fit(
        target: &[f32],
        shape: MatrixShape,
        size: usize,
        weights: &Weights<'_>,
    ) -> Self {
        let tiling = Tiling::new(shape, size);
        let mut values = vec![0.0; size * size * tiling.n_tiles()];
        for row in 0..shape.d_out {
            let inverse = weights.inverse_gain(row);
            tiling.for_row(row, |columns, start| {
                let source = &target[row * shape.d_in..][columns.clone()];
                for (value, w) in values[start..][..columns.len()].iter_mut().zip(source) {
                    *value = w * inverse;
                }
            });
        }
        Self { tiling, values }
    }

    pub(crate) fn add_row(&self, row: usize, gain: f32, out: &mut [f32]) {
        self.tiling.for_row(row, |columns, start| {
            let values = &self.values[start..][..columns.len()];
            for (out, value) in out[columns].iter_mut().zip(values) {
                *out += gain * value;
            }
        });
    }

    /// Adds `rows` of the product to `y`.
    pub(crate) fn add_product(&self, rows: Range<usize>, x: &[f32], y: &mut [f32]) {
        for (row, y) in rows.zip(y) {
            self.tiling.for_row(row, |columns, start| {
                let values = &self.values[start..][..columns.len()];
                *y += x[columns].iter().zip(values).map(|(x, v)| x * v).sum::<f32>();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support(d_in: usize, d_out: usize, size: usize) -> Vec<String> {
        let shape = MatrixShape::new(d_in, d_out);
        let ones = vec![1.0; shape.n_weights()];
        let tiles = Tiles::fit(&ones, shape, size, &Weights::default());
        (0..d_out)
            .map(|row| {
                let mut out = vec![0.0; d_in];
                tiles.add_row(row, 1.0, &mut out);
                out.iter().map(|&v| if v == 0.0 { '.' } else { '#' }).collect()
            })
            .collect()
    }

    #[test]
    fn tiles_wrap_around_in_wide_and_tall_matrices() {
        assert_eq!(support(3, 3, 1), ["#..", ".#.", "..#"]);
        assert_eq!(support(5, 2, 1), ["#.#.#", ".#.#."]);
        assert_eq!(support(2, 3, 1), ["#.", ".#", "#."]);
        assert_eq!(support(5, 3, 2), ["##..#", "##..#", "..##."]);
        assert_eq!(support(1, 4, 1), ["#", "#", "#", "#"]);
        assert_eq!(support(3, 4, 9), ["###", "###", "###", "###"]);
    }

    #[test]
    fn identity_is_the_weighted_mean_of_its_tiles() {
        let shape = MatrixShape::new(2, 2);
        let w = [1.0, 9.0, 9.0, 4.0];
        assert_eq!(Identity::fit(&w, shape, &Weights::default()).scale, 2.5);
        let h = [3.0, 1.0];
        let weights = Weights { importance: Some(&h), gains: None };
        assert_eq!(Identity::fit(&w, shape, &weights).scale, 1.75);
    }
}
