//! Sparse matrices: the exact weights beside a dictionary code, and SeedDelta's corrections.
//!
//! `y[r, t] = sum_i vals[i] * x[column(i), t]` over the entries of row r in order, by fused
//! multiply-add; all forms give the same bits, for one token and for many.

mod rows;
mod scalar;
mod simd;

use half::f16;

use crate::error::{check_finite_f16, check_len};
use crate::isa::Level;
use crate::transpose::Store;
use crate::{Columns, Isa, KernelError, Output, Scratch};

/// A sparse matrix, borrowed where it lies (a mapped file, say).
///
/// That every position lies in its row was checked when the value was made; the fast forms read `x`
/// without further checks because of that.
#[derive(Clone, Copy, Debug)]
pub struct SparseMatrix<'a> {
    d_in: usize,
    d_out: usize,
    entries: Entries<'a>,
    vals: &'a [f16],
}

/// Column numbers, one per entry.
#[derive(Clone, Copy, Debug)]
pub enum ColumnIndex<'a> {
    /// For matrices of at most 32768 inputs.
    I16(&'a [i16]),
    /// For all others.
    I32(&'a [i32]),
}

impl ColumnIndex<'_> {
    fn len(&self) -> usize {
        match self {
            Self::I16(columns) => columns.len(),
            Self::I32(columns) => columns.len(),
        }
    }

    /// The first entry that is not a column of `d_in`, with its number.
    fn first_outside(&self, d_in: usize) -> Option<(usize, i64)> {
        fn find<I: Copy + Into<i64>>(columns: &[I], d_in: usize) -> Option<(usize, i64)> {
            let outside = |&c: &I| c.into() < 0 || c.into() >= d_in as i64;
            let index = columns.iter().position(outside)?;
            Some((index, columns[index].into()))
        }
        match self {
            Self::I16(columns) => find(columns, d_in),
            Self::I32(columns) => find(columns, d_in),
        }
    }
}

/// Where the entries are.
#[derive(Clone, Copy, Debug)]
enum Entries<'a> {
    /// Flat positions `row * d_in + column`, ascending.
    Flat(&'a [i32]),
    /// Columns, the same number of entries for every row.
    Rows(usize, ColumnIndex<'a>),
}

impl<'a> SparseMatrix<'a> {
    /// Takes over entries in coordinate form.
    ///
    /// # Shapes
    /// `positions`: `[n]`, `row * d_in + column`, strictly ascending; `vals`: `[n]`
    ///
    /// # Errors
    /// [`KernelError`]: a dimension out of range, lengths that differ, the first position out of range
    /// or order, the first value that is not finite.
    pub fn from_flat(
        d_in: usize,
        d_out: usize,
        positions: &'a [i32],
        vals: &'a [f16],
    ) -> Result<Self, KernelError> {
        let n_weights = check_shape(d_in, d_out)?;
        check_len("outlier values", positions.len(), vals.len())?;
        check_finite_f16("outlier value", vals)?;
        let mut previous = -1;
        for (index, &position) in positions.iter().enumerate() {
            let refuse = |reason| {
                let (what, value) = ("outlier position", i64::from(position));
                Err(KernelError::Position { what, index, value, reason })
            };
            if position <= previous {
                return refuse("must be above the one before it, and not negative");
            }
            if position as usize >= n_weights {
                return refuse("is outside the matrix");
            }
            previous = position;
        }
        Ok(Self { d_in, d_out, entries: Entries::Flat(positions), vals })
    }

    /// Takes over rows of `k` entries each. A slot is left empty by the value 0 at any column.
    ///
    /// # Shapes
    /// `columns`: [k, d_out], `vals`: [k, d_out]
    ///
    /// # Errors
    /// [`KernelError`]: a dimension out of range, a length that does not fit, the first column outside
    /// the matrix, the first value that is not finite.
    pub fn from_rows(
        d_in: usize,
        d_out: usize,
        k: usize,
        columns: ColumnIndex<'a>,
        vals: &'a [f16],
    ) -> Result<Self, KernelError> {
        check_shape(d_in, d_out)?;
        let reason = "k * d_out is too large";
        let n = k.checked_mul(d_out);
        let n = n.ok_or(KernelError::Dimension { what: "k", value: k, reason })?;
        check_len("delta columns", n, columns.len())?;
        check_len("delta values", n, vals.len())?;
        check_finite_f16("delta value", vals)?;
        match columns.first_outside(d_in) {
            None => Ok(Self { d_in, d_out, entries: Entries::Rows(k, columns), vals }),
            Some((index, value)) => {
                let reason = "is not a column of the matrix";
                Err(KernelError::Position { what: "delta column", index, value, reason })
            }
        }
    }

    /// Number of inputs.
    #[must_use]
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Number of rows.
    #[must_use]
    pub fn d_out(&self) -> usize {
        self.d_out
    }

    /// Computes this thread's rows of `y`.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens] -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn product(
        &self,
        isa: Isa,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        self.run(isa, Store::Set, x, y, scratch)
    }

    /// Adds this thread's rows of the product to `y`.
    ///
    /// # Shapes
    /// As for [`Self::product`].
    ///
    /// # Errors
    /// As for [`Self::product`].
    pub fn add_product(
        &self,
        isa: Isa,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        self.run(isa, Store::Add, x, y, scratch)
    }

    fn run(
        &self,
        isa: Isa,
        store: Store,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        if x.n() != self.d_in {
            let reason = "the input has another length than the matrix has inputs";
            return Err(KernelError::Dimension { what: "d_in", value: x.n(), reason });
        }
        y.check_shape(self.d_out, x.n_tokens())?;
        match isa.level() {
            Level::Scalar => scalar::product(self, store, x, y),
            level => simd::product(level, self, store, x, y, scratch),
        }
        Ok(())
    }

    /// Number of the first entry of row `r` or a later one.
    fn first_entry(&self, r: usize) -> usize {
        match self.entries {
            // Searching touches cold memory at every step; most threads need no or one search.
            Entries::Flat(_) if r == 0 => 0,
            Entries::Flat(positions) if r >= self.d_out => positions.len(),
            Entries::Flat(positions) => {
                positions.partition_point(|&p| (p as usize) < r * self.d_in)
            }
            Entries::Rows(k, _) => r * k,
        }
    }
}

/// Number of weights of a possible shape.
fn check_shape(d_in: usize, d_out: usize) -> Result<usize, KernelError> {
    for (what, value) in [("d_in", d_in), ("d_out", d_out)] {
        if value == 0 || value > i32::MAX as usize {
            let reason = "must be 1..=2147483647";
            return Err(KernelError::Dimension { what, value, reason });
        }
    }
    let reason = "d_in * d_out is too large";
    d_in.checked_mul(d_out).ok_or(KernelError::Dimension { what: "d_in", value: d_in, reason })
}
