//! Where bases lie that live along the (wrapped) diagonal.

use std::ops::Range;

use crate::MatrixShape;

/// Tiles of size b: tile t joins input block `t mod ceil(d_in / b)` with output block `t mod ceil(d_out / b)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    shape: MatrixShape,
    size: usize,
    n_in: usize,
    n_out: usize,
}

impl Tiling {
    /// The tiles of `size` (at least 1) of a matrix of `shape`.
    #[must_use]
    pub fn new(shape: MatrixShape, size: usize) -> Self {
        Self { shape, size, n_in: shape.d_in.div_ceil(size), n_out: shape.d_out.div_ceil(size) }
    }

    /// Inputs and outputs of a tile; the last of either may be shorter.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of tiles.
    #[must_use]
    pub fn n_tiles(&self) -> usize {
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
    pub fn for_row(&self, row: usize, mut f: impl FnMut(Range<usize>, usize)) {
        for t in self.tiles_of_row(row) {
            let start = (t * self.size + row % self.size) * self.size;
            f(self.columns(t), start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support(d_in: usize, d_out: usize, size: usize) -> Vec<String> {
        let tiling = Tiling::new(MatrixShape::new(d_in, d_out), size);
        let row = |row| {
            let mut out = vec!['.'; d_in];
            tiling.for_row(row, |columns, _| out[columns].fill('#'));
            out.into_iter().collect()
        };
        (0..d_out).map(row).collect()
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
}
