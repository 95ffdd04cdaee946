//! Raw buffers of the host as slices: the one place where a pointer becomes memory.

use crate::error::HookError;

/// `n` elements at `data` as a slice; null is accepted for an empty slice only.
///
/// # Safety
/// A non-null `data` leads to `n` initialized elements that nobody writes while the slice lives.
pub unsafe fn bytes_of<'a, T>(data: *const T, n: usize) -> Result<&'a [T], HookError> {
    if n == 0 {
        return Ok(&[]);
    }
    if data.is_null() || !data.is_aligned() {
        return Err(HookError::Call("null or misaligned buffer"));
    }
    // SAFETY: not null, aligned, and the caller promises `n` initialized elements.
    Ok(unsafe { std::slice::from_raw_parts(data, n) })
}

/// Elements `range` of the `n` at `data`, of which other threads may be writing the rest.
///
/// # Safety
/// A non-null `data` leads to `n` elements; those in `range` are initialized, and nobody writes them while the slice lives.
pub unsafe fn part_of<'a, T>(
    data: *const T,
    n: usize,
    range: std::ops::Range<usize>,
) -> Result<&'a [T], HookError> {
    if range.start > range.end || range.end > n {
        return Err(HookError::Call("buffer too small"));
    }
    if data.is_null() && !range.is_empty() {
        return Err(HookError::Call("null or misaligned buffer"));
    }
    // SAFETY: the range lies in the n elements behind `data`, whatever its start; see the caller's promise.
    unsafe { bytes_of(data.wrapping_add(range.start), range.len()) }
}

/// An output buffer that the threads of one call fill together, each its own elements.
#[derive(Debug)]
pub struct SharedOutput<T> {
    data: *mut T,
    n: usize,
}

impl<T: Copy> SharedOutput<T> {
    /// # Safety
    /// `data` leads to `n` writable elements that only the threads of this call touch, each element one thread.
    pub unsafe fn new(data: *mut T, n: usize) -> Result<Self, HookError> {
        if n > 0 && (data.is_null() || !data.is_aligned()) {
            return Err(HookError::Call("null or misaligned buffer"));
        }
        Ok(Self { data, n })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Start of the buffer, for kernels that share it among threads themselves.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.data
    }

    /// Where elements `range` begin, for kernels that share them among threads themselves.
    pub fn start_of(&self, range: std::ops::Range<usize>) -> Result<*mut T, HookError> {
        if range.start > range.end || range.end > self.n {
            return Err(HookError::Call("buffer too small"));
        }
        Ok(self.data.wrapping_add(range.start))
    }

    /// Elements `range` for writing.
    ///
    /// # Safety
    /// No other thread has these elements.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: std::ops::Range<usize>) -> Result<&mut [T], HookError> {
        if range.start > range.end || range.end > self.n {
            return Err(HookError::Call("buffer too small"));
        }
        // SAFETY: inside the n elements promised to `new`, and the caller promises that they are this thread's.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) })
    }
}
