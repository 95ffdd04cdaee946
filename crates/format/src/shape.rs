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

impl std::fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.d_in, self.d_out)
    }
}
