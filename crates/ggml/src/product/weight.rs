//! Dense weights in memory.

use format::MatrixShape;
use ggml_sys as sys;

use super::memory::{MemoryKind, Resident};
use super::{ProductError, to_i64};
use crate::{Type, TypeError};

/// A matrix [d_in, d_out] of one of ggml's types, ready to multiply with.
#[derive(Debug)]
pub struct Weight {
    shape: MatrixShape,
    kind: MemoryKind,
    tensor: Resident,
}

impl Weight {
    /// The matrix in plain memory, as the file has it.
    ///
    /// # Errors
    /// [`ProductError`]: a type without products, rows of no whole blocks, another number of bytes.
    pub fn plain(ty: Type, shape: MatrixShape, data: &[u8]) -> Result<Self, ProductError> {
        check(ty, shape)?;
        Self::place(MemoryKind::plain(), ty, shape, data)
    }

    /// The matrix rearranged for the CPU backend's special kernels, as llama.cpp loads it where there
    /// are such for the type, the shape and this machine; `None` elsewhere.
    ///
    /// # Errors
    /// As [`Self::plain`].
    pub fn packed(ty: Type, shape: MatrixShape, data: &[u8]) -> Result<Option<Self>, ProductError> {
        check(ty, shape)?;
        packed_kind(ty, shape).map(|kind| Self::place(kind, ty, shape, data)).transpose()
    }

    /// Whether [`Self::packed`] makes a weight.
    #[must_use]
    pub fn is_packed(ty: Type, shape: MatrixShape) -> bool {
        check(ty, shape).is_ok() && packed_kind(ty, shape).is_some()
    }

    fn place(
        kind: MemoryKind,
        ty: Type,
        shape: MatrixShape,
        data: &[u8],
    ) -> Result<Self, ProductError> {
        let tensor = Resident::new(kind, ty, &[shape.d_in, shape.d_out], data)?;
        Ok(Self { shape, kind, tensor })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// ggml's name for the memory: `CPU` for plain, `CPU_REPACK` or another one for rearranged weights.
    #[must_use]
    pub fn memory(&self) -> &'static str {
        self.kind.name()
    }

    /// Bytes in memory.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.tensor.n_bytes()
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ggml_tensor {
        self.tensor.as_ptr()
    }
}

/// The memory that llama.cpp prefers to plain memory for a checked shape.
fn packed_kind(ty: Type, shape: MatrixShape) -> Option<MemoryKind> {
    let ne = [to_i64(shape.d_in), to_i64(shape.d_out)];
    MemoryKind::extra().into_iter().find(|kind| kind.multiplies(ty, ne))
}

/// Checks everything on which ggml would stop the process.
fn check(ty: Type, shape: MatrixShape) -> Result<(), ProductError> {
    if !ty.has_product() {
        return Err(ProductError::NoProduct(ty));
    }
    if shape.d_in == 0 || shape.d_out == 0 {
        return Err(ProductError::Range("a dimension of the matrix"));
    }
    let row = TypeError::Row { ty, n_per_row: shape.d_in };
    ty.row_bytes(shape.d_in).ok_or(row)?;
    let n_bytes = ty.tensor_bytes(&[shape.d_in, shape.d_out]);
    n_bytes.filter(|&n| isize::try_from(n).is_ok()).ok_or(ProductError::Range("the matrix"))?;
    Ok(())
}

impl Type {
    /// Whether ggml's CPU backend multiplies weights of this type with F32 inputs.
    #[must_use]
    pub fn has_product(self) -> bool {
        // SAFETY: the type is known to ggml, whose table of traits is static.
        let traits = unsafe { &*sys::ggml_get_type_traits_cpu(self.raw()) };
        traits.vec_dot.is_some()
    }
}
