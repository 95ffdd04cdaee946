//! A matrix coded in sections.

use std::sync::Arc;

use half::f16;

use super::cache::{CachedTiles, TileCache};
use super::decode;
use super::shape::SectionShape;
use crate::error::{check_finite_f16, check_len};
use crate::{KernelError, ROW_TILE, SparseMatrix};

/// A matrix coded in sections, borrowed where it lies (a mapped file, say).
///
/// Any byte is a valid code. Lengths, scales and outliers were checked when the value was made.
#[derive(Clone, Debug)]
pub struct SectionMatrix<'a> {
    pub(super) shape: SectionShape,
    pub(super) codes: &'a [u8],
    pub(super) row_scale: &'a [f16],
    pub(super) outliers: Option<SparseMatrix<'a>>,
    pub(super) cached: Option<CachedTiles>,
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
        Ok(Self { shape, codes, row_scale, outliers, cached: None })
    }

    /// Keeps decoded tiles in `cache`. The bits of a product stay what they are.
    pub fn keep_tiles(&mut self, cache: &Arc<TileCache>) {
        let n_tiles = self.shape.d_out.div_ceil(ROW_TILE) * decode::n_passes(self.shape);
        self.cached = Some(CachedTiles::new(cache, n_tiles));
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> SectionShape {
        self.shape
    }

    /// The atom of `section` that row `r` uses in `block`.
    pub(super) fn code(&self, r: usize, block: usize, section: usize) -> usize {
        let plane = block * self.shape.n_sections + section;
        let (byte, shift) = self.shape.layout().position(r, plane);
        usize::from(self.codes[byte] >> shift & 15)
    }
}
