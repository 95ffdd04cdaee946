//! What the host passes by pointers and plain numbers, checked, as what the rest of the crate works with.

use std::ffi::{CStr, c_char};

use format::{ExpertStack, MatrixShape};

use crate::buffer::bytes_of;
use crate::c_types::StatecellsTensor;
use crate::error::HookError;
use crate::sidecars::{SidecarView, Sidecars};

/// # Safety
/// `text` is null or a C string that outlives the result.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller promises a C string.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// The shape of a matrix.
fn shape(d_in: i64, d_out: i64) -> Result<MatrixShape, HookError> {
    let size = |n: i64| usize::try_from(n).ok().filter(|&n| n > 0);
    let (Some(d_in), Some(d_out)) = (size(d_in), size(d_out)) else {
        return Err(HookError::Call("matrix without inputs or outputs"));
    };
    let shape = MatrixShape::new(d_in, d_out);
    shape.checked_n_weights().ok_or(HookError::Call("matrix too large"))?;
    Ok(shape)
}

/// The shapes of experts' matrices.
pub(crate) fn stack(d_in: i64, d_out: i64, n_experts: i64) -> Result<ExpertStack, HookError> {
    let each = shape(d_in, d_out)?;
    let stack = ExpertStack { each, n_experts: usize::try_from(n_experts).unwrap_or(0) };
    stack.check().map_err(HookError::Experts)?;
    Ok(stack)
}

/// # Safety
/// As [`crate::statecells_matrix_new`].
pub(crate) unsafe fn arguments<'a>(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
) -> Result<(&'a str, MatrixShape, Sidecars), HookError> {
    // SAFETY: the caller's promises.
    let (scheme, sidecars) = unsafe { described(scheme, tensors, n_tensors)? };
    Ok((scheme, shape(d_in, d_out)?, sidecars))
}

/// # Safety
/// As [`crate::statecells_matrix_new`].
pub(crate) unsafe fn described<'a>(
    scheme: *const c_char,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
) -> Result<(&'a str, Sidecars), HookError> {
    // SAFETY: the caller promises a C string.
    let scheme = unsafe { text(scheme) }.ok_or(HookError::Call("scheme is not text"))?;
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
    Ok((scheme, Sidecars::new(views?)))
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
