//! What the host passes by pointers and plain numbers, checked, as what the rest of the crate works with.

use std::ffi::{CStr, c_char};

use format::MatrixShape;

use crate::abi::StatecellsTensor;
use crate::buffer::bytes_of;
use crate::matrix::{Call, HookError, Matrix};
use crate::sidecars::{SidecarView, Sidecars};

impl Call {
    /// Checks the host's numbers; besides, the numbers of inputs and outputs of the call.
    pub(crate) fn check(
        matrix: &Matrix,
        n_tokens: i64,
        ith: i32,
        nth: i32,
    ) -> Result<(Self, usize, usize), HookError> {
        let bad = HookError::Call("token or thread count out of range");
        let (n_tokens, ith, nth) =
            (usize::try_from(n_tokens), usize::try_from(ith), usize::try_from(nth));
        let (Ok(n_tokens), Ok(ith), Ok(nth)) = (n_tokens, ith, nth) else { return Err(bad) };
        let (d_in, d_out) = (matrix.shape().d_in, matrix.shape().d_out);
        match (d_in.checked_mul(n_tokens), d_out.checked_mul(n_tokens)) {
            (Some(n_in), Some(n_out)) if ith < nth => {
                Ok((Self { n_tokens, ith, nth }, n_in, n_out))
            }
            _ => Err(bad),
        }
    }
}

/// # Safety
/// `text` is null or a C string that outlives the result.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller promises a C string.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// # Safety
/// As [`statecells_matrix_new`].
pub(crate) unsafe fn arguments<'a>(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
) -> Result<(&'a str, MatrixShape, Sidecars), HookError> {
    // SAFETY: the caller promises a C string.
    let scheme = unsafe { text(scheme) }.ok_or(HookError::Call("scheme is not text"))?;
    let size = |n: i64| usize::try_from(n).ok().filter(|&n| n > 0);
    let (Some(d_in), Some(d_out)) = (size(d_in), size(d_out)) else {
        return Err(HookError::Call("matrix without inputs or outputs"));
    };
    let shape = MatrixShape::new(d_in, d_out);
    shape.checked_n_weights().ok_or(HookError::Call("matrix too large"))?;
    // SAFETY: the caller promises `n_tensors` descriptions.
    let raw = unsafe { bytes_of(tensors, n_tensors)? };
    let views: Result<Vec<_>, _> = raw
        .iter()
        .map(|t| {
            // SAFETY: the caller promises that `suffix` is a C string and `data` leads to `n_bytes` bytes that stay
            // in place as long as the matrix.
            unsafe {
                SidecarView::from_raw(text(t.suffix), t.ggml_type, t.ne, t.data.cast(), t.n_bytes)
            }
        })
        .collect();
    Ok((scheme, shape, Sidecars::new(views?)))
}

/// # Safety
/// `error` is null or has room for `size` bytes.
pub(crate) unsafe fn write_error(e: &HookError, error: *mut c_char, size: usize) {
    if error.is_null() || size == 0 {
        return;
    }
    let text = e.to_string();
    let mut n = text.len().min(size - 1);
    while !text.is_char_boundary(n) {
        n -= 1;
    }
    // SAFETY: n < size bytes fit, and one more for the terminating zero.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), error, n);
        error.add(n).write(0);
    }
}
