//! Dense products on ggml's CPU backend.

use ggml_sys as sys;
use rayon::prelude::*;

use crate::Type;
use crate::arena::Arena;

/// Threaded `ggml_mul_mat` on F32 matrices.
///
/// The bytes of the result do not depend on the number of threads: threads only share out whole elements
/// of the result, and each is summed in one order. They do depend on the machine's vector width and on
/// the shapes, which decide which of ggml's kernels runs. Which threads do the work decides about the time alone: those
/// of a second pool wait for the first one's, which look for work for a while before they sleep.
#[derive(Clone, Copy, Debug)]
pub struct MulMat {
    n_threads: i32,
    pool: Pool,
}

/// Whose threads multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Ggml,
    Rayon,
}

impl MulMat {
    /// Products on `n_threads` of ggml's threads, at least one, at most as many as ggml supports (512): beside a model
    /// that runs on them.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        let n_threads = n_threads.clamp(1, sys::GGML_MAX_N_THREADS as usize);
        Self { n_threads: i32::try_from(n_threads).expect("at most 512"), pool: Pool::Ggml }
    }

    /// The same on rayon's threads: beside work that is shared out by rayon.
    #[must_use]
    pub fn on_rayon(n_threads: usize) -> Self {
        Self { pool: Pool::Rayon, ..Self::new(n_threads) }
    }

    /// Number of threads used.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.n_threads.unsigned_abs() as usize
    }
}

impl numerics::MatMul for MulMat {
    /// # Panics
    /// If the lengths of `a`, `b` and `out` are not `k * m`, `k * n` and `m * n`.
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        let (m, n) = checked_shape(a, b, k, out);
        if out.is_empty() {
            return;
        }
        if self.pool == Pool::Ggml || self.n_threads == 1 {
            return self.whole(a, b, k, out);
        }
        let one = Self::new(1);
        match n {
            1 => {
                let rows = m.div_ceil(self.n_threads());
                let parts = a.par_chunks(k * rows).zip(out.par_chunks_mut(rows));
                parts.for_each(|(a, out)| one.whole(a, b, k, out));
            }
            _ => {
                let columns = self.columns(n);
                let (is_single, head) = (n % columns == 1, n - n % columns);
                // A single column would be another kernel's: the last part takes it along.
                let head = if is_single { head - columns } else { head };
                let (b, b_rest) = b.split_at(head * k);
                let (out, out_rest) = out.split_at_mut(head * m);
                let parts = b.par_chunks(k * columns).zip(out.par_chunks_mut(m * columns));
                rayon::join(
                    || parts.for_each(|(b, out)| one.whole(a, b, k, out)),
                    || one.whole(a, b_rest, k, out_rest),
                );
            }
        }
    }
}

impl MulMat {
    /// Columns of a part of `n` on rayon's threads: two parts for each thread, but at least two columns.
    fn columns(&self, n: usize) -> usize {
        n.div_ceil(2 * self.n_threads()).max(2)
    }

    /// The product in one graph.
    ///
    /// # Shapes
    /// `a`: [k, m], `b`: [k, n], `out`: [m, n].
    fn whole(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        let (m, n) = checked_shape(a, b, k, out);
        if out.is_empty() {
            return;
        }
        // SAFETY: no preconditions.
        let graph_bytes = unsafe { sys::ggml_graph_overhead_custom(GRAPH_NODES, false) };
        let mut arena = Arena::new(3, graph_bytes);
        // SAFETY: the arena has room for three tensors and the graph. The tensors have exactly the sizes
        // of the slices, so nothing overflows; `a` and `b` are only read, `out` is borrowed for writing
        // and no node of the graph is without data.
        let status = unsafe {
            let tensor_a = arena.tensor(Type::F32, &[to_i64(k), to_i64(m), 1, 1]);
            let tensor_b = arena.tensor(Type::F32, &[to_i64(k), to_i64(n), 1, 1]);
            let product = sys::ggml_mul_mat(arena.as_mut_ptr(), tensor_a, tensor_b);
            (*tensor_a).data = a.as_ptr().cast_mut().cast();
            (*tensor_b).data = b.as_ptr().cast_mut().cast();
            (*product).data = out.as_mut_ptr().cast();
            let graph = sys::ggml_new_graph_custom(arena.as_mut_ptr(), GRAPH_NODES, false);
            sys::ggml_build_forward_expand(graph, product);
            self.compute(graph)
        };
        assert_eq!(
            status,
            sys::GGML_STATUS_SUCCESS,
            "a product without callbacks cannot be aborted"
        );
    }
}

/// Node capacity of the graph; the product and its two sources need three.
const GRAPH_NODES: usize = 4;

impl MulMat {
    /// Runs `graph`.
    ///
    /// # Safety
    /// The graph must be valid and all its tensors must have data.
    unsafe fn compute(self, graph: *mut sys::ggml_cgraph) -> sys::ggml_status {
        // SAFETY: the graph is valid (promised by the caller); the plan gets the work memory it asks for,
        // which lives until the computation ends.
        unsafe {
            let mut plan = sys::ggml_graph_plan(graph, self.n_threads, std::ptr::null_mut());
            let mut work = vec![0u8; plan.work_size];
            plan.work_data = work.as_mut_ptr();
            sys::ggml_graph_compute(graph, &raw mut plan)
        }
    }
}

fn checked_shape(a: &[f32], b: &[f32], k: usize, out: &[f32]) -> (usize, usize) {
    assert!(k > 0, "vectors of length 0 have no products");
    let (m, n) = (a.len() / k, b.len() / k);
    assert_eq!((m * k, n * k), (a.len(), b.len()), "a and b must hold whole vectors of {k} values");
    assert_eq!(out.len(), m * n, "the result must hold {m} x {n} values");
    (m, n)
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).expect("slices are shorter than isize::MAX")
}

#[cfg(test)]
mod tests {
    use numerics::{MatMul, ReferenceMatMul};

    use super::*;

    /// Rounding of sums of up to 1100 products of values below 1, in different orders.
    const TOLERANCE: f32 = 1e-4;

    /// Shapes (k, m, n) for every kernel: vectors, multiples of the tiles, odd sizes, wide, tall, tiny.
    const SHAPES: [(usize, usize, usize); 24] = [
        (1, 1, 1),
        (1, 5, 3),
        (3, 1, 7),
        (8, 4, 2),
        (8, 16, 3),
        (16, 16, 1),
        (31, 33, 35),
        (32, 8, 5),
        (64, 48, 64),
        (64, 52, 7),
        (65, 64, 64),
        (72, 12, 100),
        (96, 2, 2),
        (100, 100, 100),
        (128, 1, 65),
        (128, 256, 1),
        (200, 17, 129),
        (256, 32, 6),
        (256, 1024, 4),
        (576, 64, 1536),
        (576, 255, 64),
        (577, 64, 65),
        (1024, 16, 31),
        (1100, 7, 9),
    ];

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    fn product(matmul: &dyn MatMul, (k, m, n): (usize, usize, usize)) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * n];
        matmul.mul_mat(&values(k * m, 1), &values(k * n, 2), k, &mut out);
        out
    }

    #[test]
    fn agrees_with_the_reference() {
        for shape in SHAPES {
            let reference = product(&ReferenceMatMul, shape);
            let scale = (shape.0 as f32).sqrt();
            for (i, (x, y)) in product(&MulMat::new(2), shape).iter().zip(&reference).enumerate() {
                assert!((x - y).abs() <= TOLERANCE * scale, "{shape:?} {i}: {x} {y}");
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_threads() {
        for shape in SHAPES {
            let one: Vec<_> =
                product(&MulMat::new(1), shape).into_iter().map(f32::to_bits).collect();
            for n_threads in 2..=5 {
                for mul_mat in [MulMat::new(n_threads), MulMat::on_rayon(n_threads)] {
                    let more = product(&mul_mat, shape).into_iter().map(f32::to_bits);
                    assert!(one.iter().copied().eq(more), "{shape:?}, {mul_mat:?}");
                }
            }
        }
    }

    #[test]
    fn products_may_run_side_by_side() {
        let shape = (64, 48, 64);
        let expected = product(&MulMat::new(1), shape);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(product(&MulMat::new(2), shape), expected));
            }
        });
    }

    #[test]
    fn empty_results_are_fine_and_wrong_sizes_are_not() {
        MulMat::new(0).mul_mat(&[], &[1.0, 2.0], 2, &mut []);
        let wrong = std::panic::catch_unwind(|| {
            MulMat::new(1).mul_mat(&[1.0; 3], &[1.0; 2], 2, &mut [0.0; 1]);
        });
        assert!(wrong.is_err());
    }
}
