//! The sparse product over the inner loops of [`super::rows`], compiled for each instruction set.

use std::ops::Range;

use super::{SparseMatrix, Store, rows};
use crate::common::{Batch, NARROW, WIDE, interleave};
use crate::isa::Level;
use crate::{Columns, Output, ROW_TILE, Scratch};

/// The loops of [`super::rows`] with the instructions of one set.
macro_rules! compiled {
    ($name:ident, $arch:literal, $features:literal) => {
        /// # Safety
        /// As [`rows::tokens`]; and the machine has the instructions.
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        unsafe fn $name<const T: usize>(
            matrix: &SparseMatrix<'_>,
            table: &[[f32; T]],
            first: usize,
            at: &mut usize,
            out: &mut [[f32; T]],
        ) {
            // SAFETY: the caller's promise, passed on.
            unsafe { rows::tokens(matrix, table, first, at, out) }
        }
    };
}

compiled!(avx2, "x86_64", "avx2,fma,f16c");
compiled!(avx512, "x86_64", "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
compiled!(neon, "aarch64", "neon");

/// A product whose shapes agree, and what becomes of it.
struct Product<'a> {
    level: Level,
    matrix: &'a SparseMatrix<'a>,
    store: Store,
}

pub(super) fn product(
    level: Level,
    matrix: &SparseMatrix<'_>,
    store: Store,
    x: Columns<'_>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) {
    let product = Product { level, matrix, store };
    let rows = y.rows();
    let n_entries = matrix.first_entry(rows.end) - matrix.first_entry(rows.start);
    // With few entries interleaving the inputs would cost more than it saves.
    let interleaving_pays = n_entries >= matrix.d_in / 2;
    let n_tokens = x.n_tokens();
    let mut t = 0;
    while t < n_tokens {
        let batch = Batch::next(n_tokens - t, matrix.d_in);
        t += match if interleaving_pays { batch } else { Batch::One } {
            Batch::One => product.tokens::<1>(x.token(t).as_chunks().0, t..t + 1, y),
            Batch::Narrow => product.interleaved::<NARROW>(x, t, y, scratch),
            Batch::Wide => product.interleaved::<WIDE>(x, t, y, scratch),
        };
    }
}

impl Product<'_> {
    /// This thread's rows of up to `T` tokens from `t` on; returns how many tokens.
    fn interleaved<const T: usize>(
        &self,
        x: Columns<'_>,
        t: usize,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> usize {
        let tokens = t..x.n_tokens().min(t + T);
        let table = scratch.floats(self.matrix.d_in * T).as_chunks_mut::<T>().0;
        interleave(x, tokens.clone(), table);
        self.tokens(table, tokens, y)
    }

    /// The same with the inputs side by side in `table`.
    fn tokens<const T: usize>(
        &self,
        table: &[[f32; T]],
        tokens: Range<usize>,
        y: &mut Output<'_>,
    ) -> usize {
        assert_eq!(table.len(), self.matrix.d_in);
        let own = y.rows();
        let mut at = self.matrix.first_entry(own.start);
        let mut sums = [[0.0f32; T]; ROW_TILE];
        for first in own.clone().step_by(ROW_TILE) {
            let rows = first..own.end.min(first + ROW_TILE);
            let sums = &mut sums[..rows.len()];
            // SAFETY: a `Level` stands for instructions this machine has; the table has d_in entries
            // (asserted); an `Output` of the matrix's shape (checked by our callers) names existing
            // rows only; `at` is the first entry of row `first`, at the start and then by `tokens`.
            unsafe {
                match self.level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2(self.matrix, table, first, &mut at, sums),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512(self.matrix, table, first, &mut at, sums),
                    #[cfg(target_arch = "aarch64")]
                    Level::Neon => neon(self.matrix, table, first, &mut at, sums),
                    Level::Scalar => unreachable!("the reference has its own product"),
                }
            }
            for (j, t) in tokens.clone().enumerate() {
                for (out, sum) in y.token_rows(t, rows.clone()).iter_mut().zip(sums.iter()) {
                    self.store.store(out, sum[j]);
                }
            }
        }
        tokens.len()
    }
}
