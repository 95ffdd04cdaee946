//! How sparse corrections in coordinate form (COO) are laid out in tensors, and what is checked when they are read.

use crate::{CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec};

/// Matrices with more weights than this have flat positions that do not fit I32.
const MAX_FLAT_WEIGHTS: usize = 1 << 31;
/// Rows up to this length have column indices that fit I16 (the last index is one less).
const MAX_I16_COLUMNS: usize = 1 << 15;

/// How the entries are laid out in sidecar tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// StateCells' outliers: `outlier_idx` `[n]` I32, flat positions `row * d_in + column`, strictly
    /// ascending; `outlier_val` `[n]` F16. Without entries there are no tensors.
    Flat,
    /// SeedDelta's delta: `delta_idx` [k, d_out], column indices, strictly ascending in each row, I16
    /// where d_in <= 32768 and I32 elsewhere; `delta_val` [k, d_out] F16. With k = 0 there are no tensors.
    PerRow,
}

impl Layout {
    /// Suffix of the tensor of indices.
    #[must_use]
    pub const fn idx_suffix(self) -> &'static str {
        match self {
            Self::Flat => "outlier_idx",
            Self::PerRow => "delta_idx",
        }
    }

    /// Suffix of the tensor of values.
    #[must_use]
    pub const fn val_suffix(self) -> &'static str {
        match self {
            Self::Flat => "outlier_val",
            Self::PerRow => "delta_val",
        }
    }

    /// The two tensors for `n` entries: `n` in all for [`Layout::Flat`], `n` per row for [`Layout::PerRow`].
    /// None at all for `n = 0`.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if there are more entries than weights or indices do not fit I32.
    pub fn specs(self, shape: MatrixShape, n: usize) -> Result<Vec<SidecarSpec>, CodecError> {
        let weights = shape.checked_n_weights().ok_or_else(|| self.bad_idx("matrix too large"))?;
        let (most, fits) = match self {
            Self::Flat => (weights, weights <= MAX_FLAT_WEIGHTS),
            Self::PerRow => (shape.d_in, shape.d_in <= MAX_FLAT_WEIGHTS),
        };
        if n > most {
            return Err(self.bad_idx(format!("{n} entries asked for where only {most} fit")));
        }
        if !fits {
            let reason = format!("indices into a matrix of {shape} do not fit I32");
            return Err(self.bad_idx(reason));
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        let (element, dims) = match self {
            Self::Flat => (ElementType::I32, vec![n]),
            Self::PerRow if shape.d_in <= MAX_I16_COLUMNS => {
                (ElementType::I16, vec![n, shape.d_out])
            }
            Self::PerRow => (ElementType::I32, vec![n, shape.d_out]),
        };
        Ok(vec![
            SidecarSpec::new(self.idx_suffix(), element, &dims),
            SidecarSpec::new(self.val_suffix(), ElementType::F16, &dims),
        ])
    }

    /// The error for a tensor of indices that is not what the format says.
    pub fn bad_idx(self, reason: impl Into<String>) -> CodecError {
        CodecError::Sidecar { suffix: self.idx_suffix(), reason: reason.into() }
    }
}

/// The indices of a tensor of I16 or I32; none of another type.
#[must_use]
pub fn integers(sidecar: &Sidecar) -> Vec<i32> {
    let narrow = || sidecar.to_i16().map(|v| v.into_iter().map(i32::from).collect());
    sidecar.to_i32().or_else(narrow).unwrap_or_default()
}

/// `indices` if they ascend strictly and lie below `end`; `first` is the number of the first entry.
///
/// # Errors
/// [`CodecError::Sidecar`] naming the first entry that breaks the order or the range.
pub fn ascending(
    layout: Layout,
    indices: &[i32],
    first: usize,
    end: usize,
) -> Result<Vec<usize>, CodecError> {
    let mut out: Vec<usize> = Vec::with_capacity(indices.len());
    for (entry, &index) in (first..).zip(indices) {
        let index = usize::try_from(index).ok().filter(|&i| i < end).ok_or_else(|| {
            layout.bad_idx(format!("entry {entry} is {index}, must be in 0..{end}"))
        })?;
        if out.last().is_some_and(|&last| last >= index) {
            let reason = format!("entry {entry} is {index}, not above the one before");
            return Err(layout.bad_idx(reason));
        }
        out.push(index);
    }
    Ok(out)
}
