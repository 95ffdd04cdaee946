//! The gather over the inner loops of [`super::rows`], compiled for each instruction set.

use std::ops::Range;

use super::Product;
use crate::common::{Batch, NARROW, WIDE};
use crate::isa::Level;
use crate::transpose::interleave;
use crate::{Output, ROW_TILE, Scratch};

/// The loops of [`super::rows`] with the instructions of one set.
macro_rules! compiled {
    ($name:ident, $arch:literal, $features:literal) => {
        #[cfg(target_arch = $arch)]
        mod $name {
            use super::super::{GatherMatrix, rows};

            /// # Safety
            /// As [`rows::one_token`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn one_token(
                matrix: &GatherMatrix<'_>,
                table: &[f32],
                token_scale: f32,
                first: usize,
                out: &mut [f32],
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe {
                    if matrix.vals.is_some() {
                        rows::one_token::<true>(matrix, table, token_scale, first, out);
                    } else {
                        rows::one_token::<false>(matrix, table, token_scale, first, out);
                    }
                }
            }

            /// # Safety
            /// As [`rows::tokens`]; and the machine has the instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tokens<const T: usize>(
                matrix: &GatherMatrix<'_>,
                table: &[[f32; T]],
                first: usize,
                out: &mut [[f32; T]],
            ) {
                // SAFETY: the caller's promise, passed on.
                unsafe {
                    if matrix.vals.is_some() {
                        rows::tokens::<T, true>(matrix, table, first, out);
                    } else {
                        rows::tokens::<T, false>(matrix, table, first, out);
                    }
                }
            }
        }
    };
}

compiled!(avx2, "x86_64", "avx2,fma,f16c");
compiled!(avx512, "x86_64", "avx512f,avx512bw,avx512vl,avx2,fma,f16c");
compiled!(neon, "aarch64", "neon");

pub(super) fn product(
    level: Level,
    product: &Product<'_>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) {
    let n_tokens = product.p.n_tokens();
    let mut t = 0;
    while t < n_tokens {
        t += match Batch::next(n_tokens - t, product.matrix.shape.n_atoms + 1) {
            Batch::One => one_token(level, product, t, y, scratch),
            Batch::Narrow => {
                tokens::<NARROW>(level, product, t..n_tokens.min(t + NARROW), y, scratch)
            }
            Batch::Wide => tokens::<WIDE>(level, product, t..n_tokens.min(t + WIDE), y, scratch),
        };
    }
}

/// This thread's rows of token `t`; returns how many tokens, 1.
fn one_token(
    level: Level,
    product: &Product<'_>,
    t: usize,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) -> usize {
    let matrix = &product.matrix;
    let n_atoms = matrix.shape.n_atoms;
    let table = scratch.floats(2 * n_atoms + 1);
    for (i, &p) in product.p.token(t).iter().enumerate() {
        table[n_atoms + 1 + i] = p;
        table[n_atoms - 1 - i] = -p;
    }
    table[n_atoms] = 0.0;
    let own = y.rows();
    let out = y.token_rows(t, own.clone());
    let scale = product.token_scale(t);
    // SAFETY: a `Level` stands for instructions this machine has; the table has all 2 * n_atoms + 1
    // entries; an `Output` of the matrix's shape (checked by our caller) names existing rows only.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::one_token(matrix, table, scale, own.start, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::one_token(matrix, table, scale, own.start, out),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::one_token(matrix, table, scale, own.start, out),
            Level::Scalar => unreachable!("the reference has its own product"),
        }
    }
    1
}

/// This thread's rows of up to `T` tokens; returns how many tokens.
fn tokens<const T: usize>(
    level: Level,
    product: &Product<'_>,
    tokens: Range<usize>,
    y: &mut Output<'_>,
    scratch: &mut Scratch,
) -> usize {
    let matrix = &product.matrix;
    let (table, _) = scratch.floats((matrix.shape.n_atoms + 1) * T).as_chunks_mut::<T>();
    // Entry 0 is what an empty slot adds.
    table[0] = [0.0; T];
    interleave(level, product.p, tokens.clone(), &mut table[1..]);
    let own = y.rows();
    let mut sums = [[0.0f32; T]; ROW_TILE];
    for first in own.clone().step_by(ROW_TILE) {
        let rows = first..own.end.min(first + ROW_TILE);
        let sums = &mut sums[..rows.len()];
        // SAFETY: as in `one_token`; the table has n_atoms + 1 entries.
        unsafe {
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::tokens::<T>(matrix, table, first, sums),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::tokens::<T>(matrix, table, first, sums),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::tokens::<T>(matrix, table, first, sums),
                Level::Scalar => unreachable!("the reference has its own product"),
            }
        }
        for (j, t) in tokens.clone().enumerate() {
            let scale = product.token_scale(t);
            for (out, sum) in y.token_rows(t, rows.clone()).iter_mut().zip(sums.iter()) {
                *out = sum[j] * scale;
            }
        }
    }
    tokens.len()
}
