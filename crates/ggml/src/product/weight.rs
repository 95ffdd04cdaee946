//! Dense weights in memory.

use format::{ExpertStack, MatrixShape};
use ggml_sys as sys;

use super::memory::{MemoryKind, Resident};
use super::{ProductError, to_i64};
use crate::{Type, TypeError};

/// A matrix [d_in, d_out] of one of ggml's types, or one for each of some experts, ready to multiply with.
#[derive(Debug)]
pub struct Weight {
    shape: MatrixShape,
    n_experts: Option<usize>,
    kind: MemoryKind,
    tensor: Resident,
}

impl Weight {
    /// The matrix in plain memory, as the file has it.
    ///
    /// # Errors
    /// [`ProductError`]: a type without products, rows of no whole blocks, another number of bytes.
    pub fn plain(ty: Type, shape: MatrixShape, data: &[u8]) -> Result<Self, ProductError> {
        check(ty, shape, None)?;
        Self::place(MemoryKind::plain(), ty, (shape, None), data)
    }

    /// The matrices of experts in plain memory and, where [`Self::packed`] would do so for one matrix, rearranged.
    ///
    /// # Errors
    /// As [`Self::plain`].
    pub fn experts(
        ty: Type,
        stack: ExpertStack,
        data: &[u8],
    ) -> Result<(Self, Option<Self>), ProductError> {
        let (shape, n_experts) = (stack.each, Some(stack.n_experts));
        check(ty, shape, n_experts)?;
        let place = |kind| Self::place(kind, ty, (shape, n_experts), data);
        let packed = packed_kind(ty, shape, n_experts).map(place).transpose()?;
        Ok((place(MemoryKind::plain())?, packed))
    }

    /// The matrix rearranged for the CPU backend's special kernels, as llama.cpp loads it where there
    /// are such for the type, the shape and this machine; `None` elsewhere.
    ///
    /// # Errors
    /// As [`Self::plain`].
    pub fn packed(ty: Type, shape: MatrixShape, data: &[u8]) -> Result<Option<Self>, ProductError> {
        check(ty, shape, None)?;
        let place = |kind| Self::place(kind, ty, (shape, None), data);
        packed_kind(ty, shape, None).map(place).transpose()
    }

    /// Whether [`Self::packed`] makes a weight.
    #[must_use]
    pub fn is_packed(ty: Type, shape: MatrixShape) -> bool {
        check(ty, shape, None).is_ok() && packed_kind(ty, shape, None).is_some()
    }

    fn place(
        kind: MemoryKind,
        ty: Type,
        (shape, n_experts): (MatrixShape, Option<usize>),
        data: &[u8],
    ) -> Result<Self, ProductError> {
        let dims: Vec<usize> = [shape.d_in, shape.d_out].into_iter().chain(n_experts).collect();
        let tensor = Resident::new(kind, ty, &dims, data)?;
        Ok(Self { shape, n_experts, kind, tensor })
    }

    /// Number of experts; `None` for one matrix.
    #[must_use]
    pub fn n_experts(&self) -> Option<usize> {
        self.n_experts
    }

    /// Shape of the matrix, or that of each expert.
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
fn packed_kind(ty: Type, shape: MatrixShape, n_experts: Option<usize>) -> Option<MemoryKind> {
    let ne = [to_i64(shape.d_in), to_i64(shape.d_out)];
    MemoryKind::extra().into_iter().find(|kind| kind.multiplies(ty, ne, n_experts.map(to_i64)))
}

/// Checks everything on which ggml would stop the process.
fn check(ty: Type, shape: MatrixShape, n_experts: Option<usize>) -> Result<(), ProductError> {
    if !ty.has_product() {
        return Err(ProductError::NoProduct(ty));
    }
    if shape.d_in == 0 || shape.d_out == 0 || n_experts == Some(0) {
        return Err(ProductError::Range("a dimension of the matrix"));
    }
    let row = TypeError::Row { ty, n_per_row: shape.d_in };
    ty.row_bytes(shape.d_in).ok_or(row)?;
    let n_bytes = ty.tensor_bytes(&[shape.d_in, shape.d_out, n_experts.unwrap_or(1)]);
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
