//! The inner loops of the fast sparse product: plain Rust that [`super::simd`] compiles once per
//! instruction set.
#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use std::ops::Range;

use half::f16;

use super::{ColumnIndex, Entries, SparseMatrix, Store};
use crate::common::finite_f16;

/// Entries whose values are unpacked at a time, on the stack. A multiple of the four partial sums.
const CHUNK: usize = 32;

/// An integer that numbers columns.
trait Index: Copy {
    fn get(self) -> usize;
}

impl Index for i16 {
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

impl Index for i32 {
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

/// One thread's way through the entries, row after row.
struct Walk<'a, I> {
    index: &'a [I],
    vals: &'a [f16],
    at: usize,
    /// Entries per row, or for flat positions `None`.
    k: Option<usize>,
    d_in: usize,
}

impl<I: Index> Walk<'_, I> {
    /// The entries of row `r`, to be asked for in order, and what to subtract from their indexes.
    #[inline(always)]
    fn row(&mut self, r: usize) -> (Range<usize>, usize) {
        let begin = self.at;
        match self.k {
            Some(k) => {
                self.at += k;
                (begin..self.at, 0)
            }
            None => {
                let end = (r + 1) * self.d_in;
                while self.at < self.index.len() && self.index[self.at].get() < end {
                    self.at += 1;
                }
                (begin..self.at, r * self.d_in)
            }
        }
    }

    /// Unpacks up to [`CHUNK`] entries from `begin` on.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn unpack(&self, begin: usize, len: usize, base: usize, chunk: &mut Chunk) {
        // SAFETY: the caller's promise.
        let (index, vals) = unsafe {
            (
                self.index.get_unchecked(begin..begin + len),
                self.vals.get_unchecked(begin..begin + len),
            )
        };
        for (column, index) in chunk.column.iter_mut().zip(index) {
            *column = (index.get() - base) as u32;
        }
        for (val, &v) in chunk.val.iter_mut().zip(vals) {
            *val = finite_f16(v);
        }
    }
}

/// Some entries of one row.
struct Chunk {
    column: [u32; CHUNK],
    val: [f32; CHUNK],
}

impl Chunk {
    const EMPTY: Self = Self { column: [0; CHUNK], val: [0.0; CHUNK] };
}

/// Calls `$f` with the walk of the right index type, from row `$first` on.
macro_rules! with_walk {
    ($matrix:expr, $first:expr, |$walk:ident| $body:expr) => {{
        let (vals, d_in, at) = ($matrix.vals, $matrix.d_in, $matrix.first_entry($first));
        match $matrix.entries {
            Entries::Flat(index) => {
                let mut $walk = Walk { index, vals, at, k: None, d_in };
                $body
            }
            Entries::Rows(k, ColumnIndex::I16(index)) => {
                let mut $walk = Walk { index, vals, at, k: Some(k), d_in };
                $body
            }
            Entries::Rows(k, ColumnIndex::I32(index)) => {
                let mut $walk = Walk { index, vals, at, k: Some(k), d_in };
                $body
            }
        }
    }};
}

/// One token: rows `first..first + out.len()`.
///
/// # Safety
/// `x` has d_in values and the rows exist. The range of the columns and the lengths of the buffers
/// are invariants of [`SparseMatrix`].
#[inline(always)]
pub(super) unsafe fn one_token(
    matrix: &SparseMatrix<'_>,
    store: Store,
    x: &[f32],
    first: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise, passed on.
    with_walk!(matrix, first, |walk| unsafe { one(&mut walk, store, x, first, out) });
}

/// # Safety
/// As [`one_token`].
#[inline(always)]
unsafe fn one<I: Index>(
    walk: &mut Walk<'_, I>,
    store: Store,
    x: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let mut chunk = Chunk::EMPTY;
    for (j, out) in out.iter_mut().enumerate() {
        let (entries, base) = walk.row(first + j);
        let mut parts = [0.0f32; 4];
        for begin in entries.clone().step_by(CHUNK) {
            let len = CHUNK.min(entries.end - begin);
            // SAFETY: these entries are of an existing row; their columns are below d_in.
            unsafe {
                walk.unpack(begin, len, base, &mut chunk);
                let mut i = 0;
                while i + 4 <= len {
                    for p in 0..4 {
                        let x = *x.get_unchecked(chunk.column[i + p] as usize);
                        parts[p] = chunk.val[i + p].mul_add(x, parts[p]);
                    }
                    i += 4;
                }
                for p in 0..len - i {
                    let x = *x.get_unchecked(chunk.column[i + p] as usize);
                    parts[p] = chunk.val[i + p].mul_add(x, parts[p]);
                }
            }
        }
        store.store(out, (parts[0] + parts[1]) + (parts[2] + parts[3]));
    }
}

/// `T` tokens at once: the sums of row `first + j` of all of them in `out[j]`. `table[column]` holds
/// the inputs of every token.
///
/// # Safety
/// `table` has d_in entries and the rows exist.
#[inline(always)]
pub(super) unsafe fn tokens<const T: usize>(
    matrix: &SparseMatrix<'_>,
    table: &[[f32; T]],
    first: usize,
    out: &mut [[f32; T]],
) {
    // SAFETY: the caller's promise, passed on.
    with_walk!(matrix, first, |walk| unsafe { many(&mut walk, table, first, out) });
}

/// # Safety
/// As [`tokens`].
#[inline(always)]
unsafe fn many<I: Index, const T: usize>(
    walk: &mut Walk<'_, I>,
    table: &[[f32; T]],
    first: usize,
    out: &mut [[f32; T]],
) {
    let mut chunk = Chunk::EMPTY;
    for (j, out) in out.iter_mut().enumerate() {
        let (entries, base) = walk.row(first + j);
        let mut parts = [[0.0f32; T]; 4];
        for begin in entries.clone().step_by(CHUNK) {
            let len = CHUNK.min(entries.end - begin);
            // SAFETY: as in `one`.
            unsafe {
                walk.unpack(begin, len, base, &mut chunk);
                let mut i = 0;
                while i + 4 <= len {
                    for p in 0..4 {
                        add(&mut parts[p], chunk.val[i + p], table, chunk.column[i + p]);
                    }
                    i += 4;
                }
                for p in 0..len - i {
                    add(&mut parts[p], chunk.val[i + p], table, chunk.column[i + p]);
                }
            }
        }
        for t in 0..T {
            out[t] = (parts[0][t] + parts[1][t]) + (parts[2][t] + parts[3][t]);
        }
    }
}

/// `sums += val * table[column]`.
///
/// # Safety
/// The table has this entry.
#[inline(always)]
unsafe fn add<const T: usize>(sums: &mut [f32; T], val: f32, table: &[[f32; T]], column: u32) {
    // SAFETY: the caller's promise.
    let x = unsafe { table.get_unchecked(column as usize) };
    for t in 0..T {
        sums[t] = val.mul_add(x[t], sums[t]);
    }
}
