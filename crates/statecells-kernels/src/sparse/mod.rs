//! Sparse matrices: the exact weights beside a dictionary code, and SeedDelta's corrections.
//!
//! `y[r, t] = sum_i vals[i] * x[column(i), t]` over the entries of row r in order, by fused
//! multiply-add; all forms give the same bits, for one token and for many.

mod rows;

use half::f16;

use crate::error::{check_finite_f16, check_len};
use crate::{Columns, Isa, KernelError, Output, Scratch};

/// A sparse matrix, borrowed where it lies (a mapped file, say).
///
/// That every position lies in its row was checked when the value was made; the fast forms read `x`
/// without further checks because of that.
#[derive(Clone, Debug)]
pub struct SparseMatrix<'a> {
    d_in: usize,
    d_out: usize,
    entries: Entries<'a>,
    vals: &'a [f16],
}

/// Where the entries are.
#[derive(Clone, Debug)]
enum Entries<'a> {
    /// Flat positions `row * d_in + column`, ascending.
    Flat(&'a [i32]),
}

impl<'a> SparseMatrix<'a> {
    /// Takes over entries in coordinate form.
    ///
    /// # Shapes
    /// `positions`: [n], `row * d_in + column`, strictly ascending; `vals`: [n]
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

    /// Adds this thread's rows of the product to `y`.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens] -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn add_product(
        &self,
        isa: Isa,
        x: Columns<'_>,
        y: &mut Output<'_>,
        _scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        if x.n() != self.d_in {
            let reason = "the input has another length than the matrix has inputs";
            return Err(KernelError::Dimension { what: "d_in", value: x.n(), reason });
        }
        y.check_shape(self.d_out, x.n_tokens())?;
        let _ = isa;
        rows::add_plain(self, x, y);
        Ok(())
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
