//! Dense products at the machine's speed.

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
        out.par_col_chunks_mut(TILE.1).enumerate().for_each(|(j, out)| {
            let b = b.subcols(j * TILE.1, out.ncols());
            out.par_row_chunks_mut(TILE.0).enumerate().for_each(|(i, out)| {
                let a = a.subrows(i * TILE.0, out.nrows());
                matmul(out, Accum::Replace, a, b, 1.0, Par::Seq);
            });
        });
    }
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
    fn empty_results_are_fine_and_wrong_sizes_are_not() {
        TiledMatMul.mul_mat(&[], &[1.0, 2.0], 2, &mut []);
        let wrong = std::panic::catch_unwind(|| {
            TiledMatMul.mul_mat(&[1.0; 3], &[1.0; 2], 2, &mut [0.0; 1]);
        });
        assert!(wrong.is_err());
    }
}
