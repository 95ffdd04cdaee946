//! Rows coded as k signed atoms of one global dictionary (schemes `sign`, `sign+row_scale`,
//! `sign+vals`).
//!
//! The host projects the input on the atoms once, `p = D^T x`; an output row is then a sum of k
//! entries of `p`:
//!
//! `y[r, t] = row_scale[r] * sum_i sign(codes[i, r]) * vals[i, r] * p[|codes[i, r]| - 1, t]`
//!
//! A slot with code 0 is empty and adds nothing. Sums run over the slots in order, in F32 (with
//! `vals` as fused multiply-add), so all forms, for one token and for many, give the same bits.

mod rows;
mod scalar;
mod simd;

use half::f16;

use crate::error::{check_finite_f16, check_len};
use crate::{Columns, Isa, KernelError, Output, Scratch};

/// Shape of a gathered matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherShape {
    /// Atoms of the dictionary, M: at most 32767.
    pub n_atoms: usize,
    /// Slots per row.
    pub k: usize,
    /// Number of rows.
    pub d_out: usize,
}

/// A matrix coded over a global dictionary, borrowed where it lies (a mapped file, say).
///
/// Every code was found to be within `-n_atoms..=n_atoms`, and all scales finite, when the value was
/// made; the fast forms read `p` without further checks because of that.
#[derive(Clone, Copy, Debug)]
pub struct GatherMatrix<'a> {
    shape: GatherShape,
    codes: &'a [i16],
    vals: Option<&'a [f16]>,
    row_scale: Option<&'a [f16]>,
}

impl<'a> GatherMatrix<'a> {
    /// Checks a coded matrix and takes it over.
    ///
    /// The borrow must really be immutable for its whole life: whoever makes slices of a mapped file
    /// promises that nobody changes the file meanwhile.
    ///
    /// # Shapes
    /// `codes`: [k, d_out], `vals`: [k, d_out] (1 if absent), `row_scale`: `[d_out]` (1 if absent).
    ///
    /// # Errors
    /// [`KernelError`]: a length that does not fit, the first code out of range, the first value that
    /// is not finite.
    pub fn new(
        shape: GatherShape,
        codes: &'a [i16],
        vals: Option<&'a [f16]>,
        row_scale: Option<&'a [f16]>,
    ) -> Result<Self, KernelError> {
        let n_codes = check_shape(shape)?;
        check_len("codes", n_codes, codes.len())?;
        let limit = shape.n_atoms as i16; // check_shape: fits
        if let Some(i) = codes.iter().position(|&c| c < -limit || c > limit) {
            let (row, slot) = (i / shape.k, i % shape.k);
            return Err(KernelError::CodeRange {
                code: codes[i],
                row,
                slot,
                n_atoms: shape.n_atoms,
            });
        }
        if let Some(vals) = vals {
            check_len("vals", n_codes, vals.len())?;
            check_finite_f16("vals", vals)?;
        }
        if let Some(row_scale) = row_scale {
            check_len("row_scale", shape.d_out, row_scale.len())?;
            check_finite_f16("row_scale", row_scale)?;
        }
        Ok(Self { shape, codes, vals, row_scale })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> GatherShape {
        self.shape
    }

    /// Computes this thread's rows of `y`.
    ///
    /// `x_scale[t]`, if given, multiplies all of token `t`: the way back when the host had scaled the
    /// token down, so that the projection through an F16 dictionary does not overflow.
    ///
    /// # Shapes
    /// `p`: [n_atoms, n_tokens], `x_scale`: `[n_tokens]` -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn product(
        &self,
        isa: Isa,
        p: Columns<'_>,
        x_scale: Option<&[f32]>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        if p.n() != self.shape.n_atoms {
            let reason = "the projection has another number of atoms than the matrix";
            return Err(KernelError::Dimension { what: "n_atoms", value: p.n(), reason });
        }
        y.check_shape(self.shape.d_out, p.n_tokens())?;
        if let Some(x_scale) = x_scale {
            check_len("x_scale", p.n_tokens(), x_scale.len())?;
        }
        let product = Product { matrix: *self, p, x_scale };
        match isa.level() {
            crate::isa::Level::Scalar => scalar::product(&product, y),
            level => simd::product(level, &product, y, scratch),
        }
        Ok(())
    }
}

/// A product whose shapes agree.
struct Product<'a> {
    matrix: GatherMatrix<'a>,
    p: Columns<'a>,
    x_scale: Option<&'a [f32]>,
}

impl Product<'_> {
    /// Factor of token `t`.
    fn token_scale(&self, t: usize) -> f32 {
        self.x_scale.map_or(1.0, |s| s[t])
    }
}

/// Number of codes of a possible shape.
fn check_shape(shape: GatherShape) -> Result<usize, KernelError> {
    let GatherShape { n_atoms, k, d_out } = shape;
    if n_atoms == 0 || n_atoms > i16::MAX as usize {
        let reason = "must be 1..=32767";
        return Err(KernelError::Dimension { what: "n_atoms", value: n_atoms, reason });
    }
    for (what, value) in [("k", k), ("d_out", d_out)] {
        if value == 0 {
            return Err(KernelError::Dimension { what, value, reason: "must not be 0" });
        }
    }
    let reason = "k * d_out is too large";
    k.checked_mul(d_out).ok_or(KernelError::Dimension { what: "k", value: k, reason })
}
