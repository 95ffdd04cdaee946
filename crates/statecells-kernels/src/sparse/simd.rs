//! The sparse product over the inner loops of [`super::rows`], compiled for each instruction set.

use std::ops::Range;

use super::{Entries, SparseMatrix};
use crate::common::{Batch, NARROW, WIDE};
use crate::isa::Level;
use crate::transpose::{Store, interleave, spread};
use crate::{Columns, Output, ROW_TILE, Scratch};

/// The loops of [`super::rows`] with the instructions of one set.
macro_rules! compiled {
    ($name:ident, $arch:literal, $features:literal) => {
        #[cfg(target_arch = $arch)]
        mod $name {
            use half::f16;

            use super::super::{SparseMatrix, rows};
            use crate::transpose::Store;

            /// # Safety
            /// As [`rows::tokens`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tokens<const T: usize>(
                matrix: &SparseMatrix<'_>,
                table: &[[f32; T]],
                first: usize,
                at: &mut usize,
                out: &mut [[f32; T]],
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe { rows::tokens(matrix, table, first, at, out) }
            }

            /// The product of rows `first..first + y.len()` with one token, by way of `sums`, as long as y.
            ///
            /// # Safety
            /// As [`rows::scatter`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn scatter(
                (positions, vals): (&[i32], &[f16]),
                x: &[f32],
                first: usize,
                sums: &mut [f32],
                (store, y): (Store, &mut [f32]),
            ) {
                sums.fill(0.0);
                // SAFETY: the caller's promise, passed on.
                unsafe { rows::scatter(positions, vals, x, first, sums) }
                for (y, sum) in y.iter_mut().zip(sums) {
                    store.store(y, *sum);
                }
            }
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
    let entries = matrix.first_entry(rows.start)..matrix.first_entry(rows.end);
    // With few entries interleaving the inputs would cost more than it saves.
    let interleaving_pays = entries.len() >= matrix.d_in / 2;
    let n_tokens = x.n_tokens();
    let mut t = 0;
    while t < n_tokens {
        let batch = Batch::next(n_tokens - t, matrix.d_in);
        t += match if interleaving_pays { batch } else { Batch::One } {
            Batch::One => product.one_token(x.token(t), t, entries.clone(), y, scratch),
            Batch::Narrow => product.interleaved::<NARROW>(x, t, y, scratch),
            Batch::Wide => product.interleaved::<WIDE>(x, t, y, scratch),
        };
    }
}

impl Product<'_> {
    /// This thread's rows, which have the `entries`, of token `t`; returns how many tokens, 1.
    fn one_token(
        &self,
        x: &[f32],
        t: usize,
        entries: Range<usize>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> usize {
        // The quick division by the number of columns needs two at least.
        let (Entries::Flat(positions), 2..) = (self.matrix.entries, x.len()) else {
            return self.tokens::<1>(x.as_chunks().0, t..t + 1, y);
        };
        assert_eq!(x.len(), self.matrix.d_in);
        let entries = (&positions[entries.clone()], &self.matrix.vals[entries]);
        let rows = y.rows();
        let sums = scratch.floats(rows.len());
        let out = (self.store, y.token_rows(t, rows.clone()));
        // SAFETY: a `Level` stands for instructions this machine has; the entries are those of the rows, whose
        // positions were checked when the matrix was made, and as many sums; x has d_in elements (asserted),
        // at least two.
        unsafe {
            match self.level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::scatter(entries, x, rows.start, sums, out),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::scatter(entries, x, rows.start, sums, out),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::scatter(entries, x, rows.start, sums, out),
                Level::Scalar => unreachable!("the reference has its own product"),
            }
        }
        1
    }

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
        interleave(self.level, x, tokens.clone(), table);
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
                    Level::Avx2 => avx2::tokens(self.matrix, table, first, &mut at, sums),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512::tokens(self.matrix, table, first, &mut at, sums),
                    #[cfg(target_arch = "aarch64")]
                    Level::Neon => neon::tokens(self.matrix, table, first, &mut at, sums),
                    Level::Scalar => unreachable!("the reference has its own product"),
                }
            }
            spread(self.level, self.store, sums, (rows, tokens.clone()), y);
        }
        tokens.len()
    }
}
