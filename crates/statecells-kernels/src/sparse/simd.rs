//! The sparse product over the inner loops of [`super::rows`], compiled for each instruction set.

use std::ops::Range;

use super::{SparseMatrix, Store};
use crate::common::{Batch, NARROW, WIDE, interleave};
use crate::isa::Level;
use crate::{Columns, Output, ROW_TILE, Scratch};

/// The loops of [`super::rows`] with the instructions of one set.
macro_rules! compiled {
    ($name:ident, $arch:literal, $features:literal) => {
        #[cfg(target_arch = $arch)]
        mod $name {
            use super::super::{SparseMatrix, Store, rows};

            /// # Safety
            /// As [`rows::one_token`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn one_token(
                matrix: &SparseMatrix<'_>,
                store: Store,
                x: &[f32],
                first: usize,
                out: &mut [f32],
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe { rows::one_token(matrix, store, x, first, out) }
            }

            /// # Safety
            /// As [`rows::tokens`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tokens<const T: usize>(
                matrix: &SparseMatrix<'_>,
                table: &[[f32; T]],
                first: usize,
                out: &mut [[f32; T]],
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe { rows::tokens(matrix, table, first, out) }
            }
        }
    };
}

compiled!(avx2, "x86_64", "avx2,fma,f16c");
compiled!(avx512, "x86_64", "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
compiled!(neon, "aarch64", "neon");

pub(super) fn product(
    level: Level,
    matrix: &SparseMatrix<'_>,
    store: Store,
    x: Columns<'_>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) {
    let rows = y.rows();
    let n_entries = matrix.first_entry(rows.end) - matrix.first_entry(rows.start);
    let n_tokens = x.n_tokens();
    let mut t = 0;
    while t < n_tokens {
        let batch = Batch::next(n_tokens - t, matrix.d_in);
        // With few entries interleaving the inputs would cost more than it saves.
        t += match if n_entries < matrix.d_in / 2 { Batch::One } else { batch } {
            Batch::One => one_token(level, matrix, store, x, t, y),
            Batch::Narrow => {
                let tokens = t..n_tokens.min(t + NARROW);
                many::<NARROW>(level, matrix, store, x, tokens, y, scratch)
            }
            Batch::Wide => {
                let tokens = t..n_tokens.min(t + WIDE);
                many::<WIDE>(level, matrix, store, x, tokens, y, scratch)
            }
        };
    }
}

/// This thread's rows of token `t`; returns how many tokens, 1.
fn one_token(
    level: Level,
    matrix: &SparseMatrix<'_>,
    store: Store,
    x: Columns<'_>,
    t: usize,
    y: &mut Output<'_>,
) -> usize {
    let rows = y.rows();
    let (x, first) = (x.token(t), rows.start);
    let out = y.token_rows(t, rows);
    // SAFETY: a `Level` stands for instructions this machine has; `x` has d_in values and an `Output`
    // of the matrix's shape names existing rows only (both checked by our callers).
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::one_token(matrix, store, x, first, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::one_token(matrix, store, x, first, out),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::one_token(matrix, store, x, first, out),
            Level::Scalar => unreachable!("the reference has its own product"),
        }
    }
    1
}

/// This thread's rows of up to `T` tokens; returns how many tokens.
fn many<const T: usize>(
    level: Level,
    matrix: &SparseMatrix<'_>,
    store: Store,
    x: Columns<'_>,
    tokens: Range<usize>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) -> usize {
    let (table, _) = scratch.floats(matrix.d_in * T).as_chunks_mut::<T>();
    interleave(x, tokens.clone(), table);
    let own = y.rows();
    let mut sums = [[0.0f32; T]; ROW_TILE];
    for first in own.clone().step_by(ROW_TILE) {
        let rows = first..own.end.min(first + ROW_TILE);
        let sums = &mut sums[..rows.len()];
        // SAFETY: as in `one_token`; the table has d_in entries.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::tokens(matrix, table, first, sums),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::tokens(matrix, table, first, sums),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::tokens(matrix, table, first, sums),
                Level::Scalar => unreachable!("the reference has its own product"),
            }
        }
        for (j, t) in tokens.clone().enumerate() {
            for (out, sum) in y.token_rows(t, rows.clone()).iter_mut().zip(sums.iter()) {
                store.store(out, sum[j]);
            }
        }
    }
    tokens.len()
}
