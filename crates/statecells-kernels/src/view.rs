//! Borrowed activations.

use crate::KernelError;

/// Activations of some tokens: `x`: [n, n_tokens], each token contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    data: &'a [f32],
    n: usize,
    n_tokens: usize,
    stride: usize,
}

impl<'a> Columns<'a> {
    /// Token `t` is `data[t * stride..][..n]`.
    ///
    /// # Errors
    /// [`KernelError`] if tokens overlap (`stride < n`) or `data` is too short.
    pub fn new(
        data: &'a [f32],
        n: usize,
        n_tokens: usize,
        stride: usize,
    ) -> Result<Self, KernelError> {
        check_extent("x", data.len(), n, n_tokens, stride)?;
        Ok(Self { data, n, n_tokens, stride })
    }

    /// Tokens one after the other without gaps; their number follows from the length.
    ///
    /// # Errors
    /// [`KernelError`] if `data` does not hold whole tokens of `n`.
    pub fn contiguous(data: &'a [f32], n: usize) -> Result<Self, KernelError> {
        if n == 0 || !data.len().is_multiple_of(n) {
            let reason = "must divide the length of the data";
            return Err(KernelError::Dimension { what: "values per token", value: n, reason });
        }
        Self::new(data, n, data.len() / n, n)
    }

    /// Values per token.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Token `t`, `[n]`.
    ///
    /// # Panics
    /// If `t` is not below [`Self::n_tokens`].
    #[must_use]
    pub fn token(&self, t: usize) -> &'a [f32] {
        assert!(t < self.n_tokens);
        &self.data[t * self.stride..][..self.n]
    }
}

/// Checks that `n_tokens` tokens of `n` values, `stride` apart, do not overlap and lie within `len`.
pub(crate) fn check_extent(
    what: &'static str,
    len: usize,
    n: usize,
    n_tokens: usize,
    stride: usize,
) -> Result<(), KernelError> {
    if n_tokens == 0 {
        return Ok(());
    }
    if n_tokens > 1 && stride < n {
        let reason = "tokens overlap: must be at least the values per token";
        return Err(KernelError::Dimension { what: "stride", value: stride, reason });
    }
    let expected = (n_tokens - 1).checked_mul(stride).and_then(|v| v.checked_add(n));
    match expected {
        Some(expected) if expected <= len => Ok(()),
        _ => Err(KernelError::Length { what, expected: expected.unwrap_or(usize::MAX), got: len }),
    }
}
