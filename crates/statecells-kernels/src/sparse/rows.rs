//! The inner loops of the fast sparse product: plain Rust that [`super::simd`] compiles once per
//! instruction set.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use half::f16;

use super::{ColumnIndex, Entries, SparseMatrix};
use crate::common::finite_f16;

/// Entries whose values are unpacked at a time, on the stack.
const CHUNK: usize = 64;

/// `T` tokens at once: the sums of row `first + j` of all of them in `out[j]`. `table[column]` holds
/// the inputs of every token. `at` is the first entry of row `first`, then of the row after the last.
///
/// # Safety
/// `table` has d_in entries, the rows exist, and `at` is right. The range of the columns and the
/// lengths of the buffers are invariants of [`SparseMatrix`].
#[inline(always)]
pub(super) unsafe fn tokens<const T: usize>(
    matrix: &SparseMatrix<'_>,
    table: &[[f32; T]],
    first: usize,
    at: &mut usize,
    out: &mut [[f32; T]],
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match matrix.entries {
            Entries::Flat(positions) => flat(matrix, positions, table, first, at, out),
            Entries::Rows(k, ColumnIndex::I16(columns)) => {
                even(k, columns, matrix.vals, table, at, out);
            }
            Entries::Rows(k, ColumnIndex::I32(columns)) => {
                even(k, columns, matrix.vals, table, at, out);
            }
        }
    }
}

/// Rows of any length. One loop runs over the entries of all of them: with a loop per row, most of
/// the time went into mispredicted ends of loops, since rows have just a few entries.
///
/// # Safety
/// As [`tokens`].
#[inline(always)]
unsafe fn flat<const T: usize>(
    matrix: &SparseMatrix<'_>,
    positions: &[i32],
    table: &[[f32; T]],
    first: usize,
    at: &mut usize,
    out: &mut [[f32; T]],
) {
    let d_in = matrix.d_in;
    let limit = (first + out.len()) * d_in;
    let (mut row, mut row_end, mut sum) = (0, (first + 1) * d_in, [0.0f32; T]);
    out.fill([0.0; T]);
    let mut val = [0.0f32; CHUNK];
    while *at < positions.len() {
        let len = CHUNK.min(positions.len() - *at);
        unpack(&matrix.vals[*at..*at + len], &mut val);
        for (i, &position) in positions[*at..*at + len].iter().enumerate() {
            let position = position as usize;
            if position >= row_end {
                out[row] = sum;
                sum = [0.0; T];
                if position >= limit {
                    *at += i;
                    return;
                }
                while position >= row_end {
                    row += 1;
                    row_end += d_in;
                }
            }
            // SAFETY: positions ascend and the first one is at or after row `first`, so this one lies
            // in the row that ends at `row_end`: the column is below d_in. i < len <= CHUNK.
            unsafe {
                let column = position - (row_end - d_in);
                add(&mut sum, *val.get_unchecked(i), table.get_unchecked(column));
            }
        }
        *at += len;
    }
    out[row] = sum;
}

/// One token, entries at any places: adds each entry to the sum of its row, `sums[row - first]`. Rows have
/// none or a few entries each, so a loop that follows the rows mispredicts about once per entry; this one has
/// no branches. The order within a row is that of the entries, as everywhere.
///
/// # Safety
/// All positions are of the rows `first..first + sums.len()` of a matrix of `x.len()` columns, `vals` is as long
/// as `positions`, and `x` has at least two elements.
#[inline(always)]
pub(super) unsafe fn scatter(
    positions: &[i32],
    vals: &[f16],
    x: &[f32],
    first: usize,
    sums: &mut [f32],
) {
    let d_in = x.len() as u64;
    // Division by a product (Lemire, Kaser and Kurz, "Faster remainder by direct computation", 2019): exact
    // for numerators and divisors below 2^32.
    let inverse = u64::MAX / d_in + 1;
    let mut val = [0.0f32; CHUNK];
    for (positions, vals) in positions.chunks(CHUNK).zip(vals.chunks(CHUNK)) {
        unpack(vals, &mut val);
        for (&position, &val) in positions.iter().zip(&val) {
            let position = u64::from(position as u32);
            let row = ((u128::from(inverse) * u128::from(position)) >> 64) as u64;
            // SAFETY: the caller's promise: the row is one of those of `sums`, the rest a column.
            unsafe {
                let x = *x.get_unchecked((position - row * d_in) as usize);
                let sum = sums.get_unchecked_mut(row as usize - first);
                *sum = val.mul_add(x, *sum);
            }
        }
    }
}

/// Rows of `k` entries each, four side by side, so that the additions of one row hide behind those of
/// the others.
///
/// # Safety
/// As [`tokens`].
#[inline(always)]
unsafe fn even<I: Copy + Into<i32>, const T: usize>(
    k: usize,
    columns: &[I],
    vals: &[f16],
    table: &[[f32; T]],
    at: &mut usize,
    out: &mut [[f32; T]],
) {
    const ROWS: usize = 4;
    let (blocks, rest) = out.as_chunks_mut::<ROWS>();
    // SAFETY: the caller's promise: all these rows exist.
    unsafe {
        for out in blocks {
            even_block::<I, T, ROWS>(k, columns, vals, table, *at, out);
            *at += ROWS * k;
        }
        for out in rest {
            even_block::<I, T, 1>(k, columns, vals, table, *at, std::array::from_mut(out));
            *at += k;
        }
    }
}

/// `R` rows of `k` entries, from entry `at` on.
///
/// # Safety
/// As [`tokens`].
#[inline(always)]
unsafe fn even_block<I: Copy + Into<i32>, const T: usize, const R: usize>(
    k: usize,
    columns: &[I],
    vals: &[f16],
    table: &[[f32; T]],
    at: usize,
    out: &mut [[f32; T]; R],
) {
    let mut sums = [[0.0f32; T]; R];
    let mut val = [[0.0f32; CHUNK]; R];
    let mut done = 0;
    while done < k {
        let len = CHUNK.min(k - done);
        for j in 0..R {
            unpack(&vals[at + j * k + done..][..len], &mut val[j]);
        }
        for i in 0..len {
            for j in 0..R {
                // SAFETY: entry at + j * k + done + i is of an existing row, its column below d_in and
                // not negative; i < CHUNK.
                unsafe {
                    let column: i32 = (*columns.get_unchecked(at + j * k + done + i)).into();
                    let x = table.get_unchecked(column as usize);
                    add(&mut sums[j], *val[j].get_unchecked(i), x);
                }
            }
        }
        done += len;
    }
    *out = sums;
}

/// Widens up to [`CHUNK`] values.
#[inline(always)]
fn unpack(vals: &[f16], out: &mut [f32; CHUNK]) {
    for (out, &val) in out.iter_mut().zip(vals) {
        *out = finite_f16(val);
    }
}

/// `sums += val * x`, rounded once.
#[inline(always)]
fn add<const T: usize>(sums: &mut [f32; T], val: f32, x: &[f32; T]) {
    for t in 0..T {
        sums[t] = val.mul_add(x[t], sums[t]);
    }
}
