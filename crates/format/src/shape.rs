//! The one convention for matrix shapes.

/// Shape of a weight matrix in ggml order: `ne = [d_in, d_out]`, innermost dimension first.
///
/// Row `r` (one output) is the contiguous slice `w[r * d_in .. (r + 1) * d_in]`, and
/// `y[r] = sum_i w[r * d_in + i] * x[i]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MatrixShape {
    /// Number of inputs, the length of a row.
    pub d_in: usize,
    /// Number of outputs, the number of rows.
    pub d_out: usize,
}

impl MatrixShape {
    /// Shape with `d_in` inputs (the length of a row) and `d_out` outputs (the number of rows).
    #[must_use]
    pub fn new(d_in: usize, d_out: usize) -> Self {
        Self { d_in, d_out }
    }

    /// Number of weights, `None` if the product overflows.
    #[must_use]
    pub fn checked_n_weights(self) -> Option<usize> {
        self.d_in.checked_mul(self.d_out)
    }

    /// Number of weights.
    ///
    /// # Panics
    /// If the product overflows; shapes from files go through [`Self::checked_n_weights`] first.
    #[must_use]
    pub fn n_weights(self) -> usize {
        self.checked_n_weights().expect("matrix shape was checked when it was read")
    }
}

/// The matrices of the experts of a layer, all of one shape, coded as if the rows of each stood below those of the one
/// before: row r of expert e is row `e * d_out + r` of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExpertStack {
    /// Shape of one expert's matrix.
    pub each: MatrixShape,
    /// Number of experts.
    pub n_experts: usize,
}

/// Why the matrices of experts cannot be coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpertsError {
    /// There is no expert, or a matrix is empty.
    #[error("experts without rows, columns or number")]
    Empty,
    /// Together they are too large for any file.
    #[error("experts too large for any file")]
    TooLarge,
    /// A tile of codes would hold rows of two experts.
    #[error("experts of {0} rows cannot be coded, only multiples of 32")]
    Rows(usize),
}

impl ExpertStack {
    /// Checks that the experts can be coded.
    ///
    /// # Errors
    /// [`ExpertsError`].
    pub fn check(self) -> Result<(), ExpertsError> {
        let Self { each, n_experts } = self;
        if n_experts == 0 || each.d_in == 0 || each.d_out == 0 {
            return Err(ExpertsError::Empty);
        }
        let n_rows = each.d_out.checked_mul(n_experts);
        let n_weights = n_rows.and_then(|n| MatrixShape::new(each.d_in, n).checked_n_weights());
        if n_weights.is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(ExpertsError::TooLarge);
        }
        if !each.d_out.is_multiple_of(crate::sections::TILE_ROWS) {
            return Err(ExpertsError::Rows(each.d_out));
        }
        Ok(())
    }

    /// The one matrix of all rows.
    ///
    /// # Panics
    /// If the number of rows overflows, which [`Self::check`] refuses.
    #[must_use]
    pub fn stacked(self) -> MatrixShape {
        let n_rows = self.each.d_out.checked_mul(self.n_experts);
        MatrixShape::new(self.each.d_in, n_rows.expect("experts were checked when they were read"))
    }
}

impl std::fmt::Display for ExpertStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.each, self.n_experts)
    }
}

impl std::fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.d_in, self.d_out)
    }
}
