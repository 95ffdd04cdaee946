//! A matrix coded in sections, and its product.

use half::f16;

use super::lookup;
use super::shape::{BLOCK, SectionShape};
use super::tables::Tables;
use crate::error::{check_finite_f16, check_len};
use crate::isa::Level;
use crate::{Columns, Isa, KernelError, Output, Scratch, SparseMatrix};

/// A matrix coded in sections, borrowed where it lies (a mapped file, say).
///
/// Any byte is a valid code. Lengths, scales and outliers were checked when the value was made.
#[derive(Clone, Debug)]
pub struct SectionMatrix<'a> {
    pub(super) shape: SectionShape,
    pub(super) codes: &'a [u8],
    pub(super) row_scale: &'a [f16],
    outliers: Option<SparseMatrix<'a>>,
}

impl<'a> SectionMatrix<'a> {
    /// Checks a coded matrix and takes it over.
    ///
    /// # Shapes
    /// `codes`: [`SectionShape::code_bytes`] bytes in the layout described there, `row_scale`:
    /// `[d_out]`, `outliers`: d_in x d_out, added to the decoded and scaled matrix.
    ///
    /// # Errors
    /// [`KernelError`]: a dimension out of range, a length that does not fit, the first scale that is
    /// not finite.
    pub fn new(
        shape: SectionShape,
        codes: &'a [u8],
        row_scale: &'a [f16],
        outliers: Option<SparseMatrix<'a>>,
    ) -> Result<Self, KernelError> {
        check_len("codes", shape.code_bytes()?, codes.len())?;
        check_len("row_scale", shape.d_out, row_scale.len())?;
        check_finite_f16("row_scale", row_scale)?;
        if let Some(outliers) = &outliers {
            let reason = "the outliers are those of a matrix of another shape";
            for (what, value, expected) in [
                ("outliers: d_in", outliers.d_in(), shape.d_in),
                ("outliers: d_out", outliers.d_out(), shape.d_out),
            ] {
                if value != expected {
                    return Err(KernelError::Dimension { what, value, reason });
                }
            }
        }
        Ok(Self { shape, codes, row_scale, outliers })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> SectionShape {
        self.shape
    }

    /// Computes this thread's rows of `y` from finished tables. `x` is read only where the matrix has
    /// outliers.
    ///
    /// # Shapes
    /// `tables`: those of `x`: [d_in, n_tokens] -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn product(
        &self,
        isa: Isa,
        tables: Tables<'_>,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let layout = tables.layout();
        let reason = "the tables were laid out for another matrix";
        if layout.d_in.div_ceil(BLOCK) != self.shape.n_blocks() {
            return Err(KernelError::Dimension { what: "d_in", value: layout.d_in, reason });
        }
        if layout.n_sections != self.shape.n_sections {
            let value = layout.n_sections;
            return Err(KernelError::Dimension { what: "n_sections", value, reason });
        }
        y.check_shape(self.shape.d_out, tables.n_tokens())?;
        if x.n() != self.shape.d_in || x.n_tokens() != tables.n_tokens() {
            let reason = "the input has another shape than its tables";
            return Err(KernelError::Dimension { what: "x", value: x.n(), reason });
        }
        match isa.level() {
            Level::Scalar => lookup::scalar(self, tables, y),
            // SAFETY: a `Level` stands for instructions this machine has.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { lookup::avx2(self, tables, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { lookup::avx512(self, tables, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { lookup::neon(self, tables, y) },
        }
        match &self.outliers {
            Some(outliers) => outliers.add_product(isa, x, y, scratch),
            None => Ok(()),
        }
    }
}
