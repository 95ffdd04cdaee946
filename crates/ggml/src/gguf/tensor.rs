//! A tensor of a file: its name, type, dimensions and place.

use std::ops::Range;

use format::MatrixShape;

use super::context::Context;
use crate::Type;

/// Name, type, dimensions and place of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(super) name: String,
    pub(super) ty: Type,
    pub(super) dims: Vec<usize>,
    /// Which part holds the data, from 0.
    pub(super) part: usize,
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// Name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    #[must_use]
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Dimensions, innermost first; one to four, trailing ones dropped.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Size of the data in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.range.len()
    }

    /// Position of the data in the file, or in the part that holds them.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.range.start
    }

    /// Number of values.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        // Cannot overflow: the file holds at least one bit per value, and was checked to hold them.
        self.dims.iter().product()
    }

    /// Shape as a matrix; `None` for more than two dimensions.
    #[must_use]
    pub fn matrix_shape(&self) -> Option<MatrixShape> {
        match *self.dims {
            [d_in] => Some(MatrixShape::new(d_in, 1)),
            [d_in, d_out] => Some(MatrixShape::new(d_in, d_out)),
            _ => None,
        }
    }
}

/// ggml computes sizes with wrapping arithmetic and does not look at the end of the file: both are
/// checked here.
pub(super) fn tensor_info(
    context: &Context,
    id: i64,
    part: usize,
    file_bytes: usize,
) -> Result<TensorInfo, String> {
    let (name, raw_type, raw_dims, offset) = context.tensor(id);
    let ty = Type::try_from(raw_type).map_err(|e| format!("tensor '{name}': {e}"))?;
    let overflow = || format!("tensor '{name}': {ty} {raw_dims:?} is larger than any file");
    let mut dims: Vec<usize> = Vec::with_capacity(raw_dims.len());
    for n in raw_dims {
        dims.push(usize::try_from(n).map_err(|_| overflow())?);
    }
    let n_bytes = ty.tensor_bytes(&dims).ok_or_else(overflow)?;
    while dims.len() > 1 && dims.last() == Some(&1) {
        dims.pop();
    }
    let start = context.data_offset().checked_add(offset).ok_or_else(overflow)?;
    let end = start.checked_add(n_bytes).ok_or_else(overflow)?;
    if end > file_bytes {
        return Err(format!(
            "tensor '{name}' ends at byte {end}, the file at {file_bytes} (truncated or damaged)"
        ));
    }
    Ok(TensorInfo { name, ty, dims, part, range: start..end })
}
