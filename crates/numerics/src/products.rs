//! Dense products at the machine's speed.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::MatMul;

/// Rows and columns of the tiles of a result. Each is made by one thread, in one order whatever the number of threads,
/// which faer's own parallel products do not promise.
const TILE: (usize, usize) = (512, 256);

/// Products by faer, shared out over rayon's threads tile by tile.
///
/// The bytes of a result do not depend on the number of threads. They do depend on the machine's vector width, by which
/// faer chooses its kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct TiledMatMul;

impl MatMul for TiledMatMul {
    /// # Panics
    /// If `k` is 0, or if the lengths of `a`, `b` and `out` are not `k * m`, `k * n` and `m * n`.
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        assert!(k > 0, "vectors of length 0 have no products");
        let (m, n) = (a.len() / k, b.len() / k);
        assert!(a.len() == m * k && b.len() == n * k, "a and b hold whole vectors of {k} values");
        assert_eq!(out.len(), m * n, "the result holds {m} x {n} values");
        if out.is_empty() {
            return;
        }
        let a = MatRef::from_row_major_slice(a, m, k);
        let b = MatRef::from_column_major_slice(b, k, n);
        let out = MatMut::from_column_major_slice_mut(out, m, n);
        in_tiles(out, Accum::Replace, a, b);
    }
}

/// Rows of `a` by columns of `b`, tile by tile.
fn in_tiles(out: MatMut<'_, f32>, accum: Accum, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    out.par_col_chunks_mut(TILE.1).enumerate().for_each(|(j, out)| {
        let b = b.subcols(j * TILE.1, out.ncols());
        out.par_row_chunks_mut(TILE.0).enumerate().for_each(|(i, out)| {
            let a = a.subrows(i * TILE.0, out.nrows());
            matmul(out, accum, a, b, 1.0, Par::Seq);
        });
    });
}

/// Columns of a matrix that is stored row after row.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// From one row to the next.
    pub(crate) stride: usize,
    pub(crate) range: Range<usize>,
}

/// Adds to every row of `out` a combination of the rows of `matrix`, which `factors` has, in `columns` of both. The bytes depend on
/// what those of [`TiledMatMul`] depend on.
///
/// # Shapes
/// `factors`: [any, n], of which the first k are read; `matrix`: [stride, k]; `out`: [stride, n].
///
/// # Panics
/// If the slices have other sizes, or the columns are not of the same number.
pub(crate) fn add_combinations(
    (out, to): (&mut [f32], &Columns),
    factors: &[f32],
    (matrix, from): (&[f32], &Columns),
) {
    let n = out.len() / to.stride;
    let k = matrix.len() / from.stride;
    if n == 0 || k == 0 || to.range.is_empty() {
        return;
    }
    assert_eq!(to.range.len(), from.range.len(), "as many columns are read as are written");
    let per_row = factors.len() / n;
    assert!(per_row * n == factors.len() && per_row >= k, "every row has its {k} factors");
    let factors = MatRef::from_column_major_slice_with_stride(factors, k, n, per_row);
    let columns = |range: &Range<usize>, stride: usize, rows: usize| {
        range.start..(rows - 1) * stride + range.end
    };
    let read = &matrix[columns(&from.range, from.stride, k)];
    let matrix =
        MatRef::from_column_major_slice_with_stride(read, from.range.len(), k, from.stride);
    let written = &mut out[columns(&to.range, to.stride, n)];
    let out =
        MatMut::from_column_major_slice_with_stride_mut(written, to.range.len(), n, to.stride);
    in_tiles(out, Accum::Add, matrix, factors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReferenceMatMul;
    use crate::testing::{on_threads, uniform};

    /// Rounding of sums of up to 1100 products of values below 0.5, in different orders.
    const TOLERANCE: f32 = 1e-4;

    /// Shapes (k, m, n): vectors, whole tiles, odd sizes, wide, tall, tiny.
    const SHAPES: [(usize, usize, usize); 14] = [
        (1, 1, 1),
        (3, 1, 7),
        (16, 16, 1),
        (31, 33, 35),
        (100, 100, 100),
        (128, 1, 600),
        (128, 1025, 1),
        (200, 17, 259),
        (256, 1024, 4),
        (576, 64, 1536),
        (577, 640, 65),
        (64, 512, 256),
        (65, 513, 257),
        (1100, 7, 9),
    ];

    fn product(mul_mat: &dyn MatMul, (k, m, n): (usize, usize, usize)) -> Vec<f32> {
        let values = |n: usize, seed| std::iter::repeat_with(uniform(seed)).take(n).collect();
        let (a, b): (Vec<f32>, Vec<f32>) = (values(k * m, 1), values(k * n, 2));
        let mut out = vec![f32::NAN; m * n];
        mul_mat.mul_mat(&a, &b, k, &mut out);
        out
    }

    #[test]
    fn agrees_with_the_reference() {
        for shape in SHAPES {
            let reference = product(&ReferenceMatMul, shape);
            let scale = (shape.0 as f32).sqrt();
            for (i, (x, y)) in product(&TiledMatMul, shape).iter().zip(&reference).enumerate() {
                assert!((x - y).abs() <= TOLERANCE * scale, "{shape:?} {i}: {x} {y}");
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_threads() {
        for shape in SHAPES {
            let bits = |n_threads| {
                let product = on_threads(n_threads, || product(&TiledMatMul, shape));
                product.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let one = bits(1);
            (2..=5).for_each(|n| assert_eq!(one, bits(n), "{shape:?}, {n} threads"));
        }
    }

    #[test]
    fn combinations_are_added_to_their_columns_alone_whatever_the_threads() {
        let (n, k, per_row) = (300, 5, 7);
        let (to, from) =
            (Columns { stride: 1100, range: 17..1017 }, Columns { stride: 1030, range: 30..1030 });
        let values = |n: usize, seed| std::iter::repeat_with(uniform(seed)).take(n).collect();
        let (matrix, factors): (Vec<f32>, Vec<f32>) =
            (values(k * from.stride, 1), values(n * per_row, 2));
        let before: Vec<f32> = values(n * to.stride, 3);
        let on = |n_threads| {
            let mut out = before.clone();
            let add = || add_combinations((&mut out, &to), &factors, (&matrix, &from));
            on_threads(n_threads, add);
            out
        };
        let out = on(1);
        for (at, (a, b)) in out.iter().zip(&before).enumerate() {
            let (row, column) = (at / to.stride, at % to.stride);
            let added: f32 = if to.range.contains(&column) {
                let of =
                    |i: usize| factors[row * per_row + i] * matrix[i * from.stride + column + 13];
                (0..k).map(of).sum()
            } else {
                0.0
            };
            assert!((a - b - added).abs() < 1e-5, "{row} {column}: {a} {b} {added}");
            assert!(added != 0.0 || a == b);
        }
        let bits = |out: &[f32]| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(&on(3)));
        // Nothing to add.
        add_combinations((&mut [], &to), &[], (&matrix, &from));
        add_combinations((&mut [1.0; 3], &Columns { stride: 3, range: 1..1 }), &[], (&[], &from));
    }

    #[test]
    fn empty_results_are_fine_and_wrong_sizes_are_not() {
        TiledMatMul.mul_mat(&[], &[1.0, 2.0], 2, &mut []);
        let wrong = std::panic::catch_unwind(|| {
            TiledMatMul.mul_mat(&[1.0; 3], &[1.0; 2], 2, &mut [0.0; 1]);
        });
        assert!(wrong.is_err());
    }
}
