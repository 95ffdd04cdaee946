//! The exported C functions; `include/statecells.h` is their documentation.

use std::ffi::{CString, c_char, c_void};
use std::sync::OnceLock;

use statecells_kernels::Dispatch;

use crate::arguments::{arguments, text};
use crate::border::{alike, free, guarded, handed_out, status, write_finding, write_plan};
use crate::buffer::{SharedOutput, bytes_of, part_of};
use crate::c_types::{StatecellsFinding, StatecellsPlan, StatecellsTensor};
use crate::check::Share;
use crate::error::HookError;
use crate::matrix::Matrix;
use crate::names;
use crate::product::Call;
use crate::schemes;

/// `STATECELLS_ABI_VERSION` of the header.
const ABI_VERSION: i32 = 7;

/// `STATECELLS_ABI_VERSION` of this library.
#[unsafe(no_mangle)]
pub extern "C" fn statecells_abi_version() -> i32 {
    ABI_VERSION
}

/// Version of this library, a C string.
#[unsafe(no_mangle)]
pub extern "C" fn statecells_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Which kernels run, a C string that stays: the instruction set, and what `STATECELLS_BATCH` forces.
#[unsafe(no_mangle)]
pub extern "C" fn statecells_kernels() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    let name = || match Dispatch::from_env() {
        Ok(dispatch) => CString::new(dispatch.to_string()).unwrap_or_default(),
        // Said by name where a matrix is made.
        Err(_) => CString::default(),
    };
    NAME.get_or_init(name).as_ptr()
}

/// Every suffix that a sidecar may have; ends with a null.
#[unsafe(no_mangle)]
pub extern "C" fn statecells_suffixes() -> *const *const c_char {
    names::suffixes()
}

/// The flag, without its dashes, that runs matrices of `scheme`, a C string that stays; of an unknown scheme the one under
/// which the loader refuses it by name.
///
/// # Safety
/// `scheme` is null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_flag(scheme: *const c_char) -> *const c_char {
    // SAFETY: the caller passes null or a C string.
    names::flag_of(unsafe { text(scheme) }.unwrap_or_default())
}

/// 0 if the weight `tensor` of `n_dims` dimensions may be coded in a model of architecture `arch`; else `error` says why not.
///
/// # Safety
/// `arch` and `tensor` are null or C strings, `error` is null or has room for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_may_code(
    arch: *const c_char,
    tensor: *const c_char,
    n_dims: usize,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: the caller passes null or C strings.
        let (arch, tensor) = unsafe { (text(arch), text(tensor)) };
        let arch = arch.ok_or(HookError::Call("architecture is not text"))?;
        let tensor = tensor.ok_or(HookError::Call("tensor name is not text"))?;
        format::codable(arch, tensor, n_dims).map_err(HookError::Uncodable)
    });
    // SAFETY: the caller's promise on `error` and `error_size`.
    unsafe { status(result.map(drop), error, error_size) }
}

/// Checks types and shapes of the sidecars, without data, and fills `plan`. 0 on success.
///
/// # Safety
/// `scheme` is a C string, `tensors` leads to `n_tensors` valid descriptions, `plan` is writable, and `error`
/// is null or has room for `error_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_plan_matrix(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
    plan: *mut StatecellsPlan,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: the caller's promises on `scheme` and `tensors`.
        let (scheme, shape, sidecars) =
            unsafe { arguments(scheme, d_in, d_out, tensors, n_tensors)? };
        schemes::plan(scheme, shape, &sidecars)
    });
    // SAFETY: the caller's promises on `plan`, `error` and `error_size`.
    unsafe { write_plan(result, plan, error, error_size) }
}

/// Checks everything and makes the matrix; null and `error` if something is wrong.
///
/// # Safety
/// As [`statecells_plan_matrix`]; besides, every `data` leads to `n_bytes` readable bytes that stay in place and
/// unchanged until [`statecells_matrix_free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_matrix_new(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
    error: *mut c_char,
    error_size: usize,
) -> *mut Matrix {
    let result = guarded(|| {
        // SAFETY: the caller's promises on `scheme`, `tensors` and their data.
        let (scheme, shape, sidecars) =
            unsafe { arguments(scheme, d_in, d_out, tensors, n_tensors)? };
        Matrix::new(scheme, shape, &sidecars)
    });
    // SAFETY: the caller's promise on `error` and `error_size`.
    unsafe { handed_out(result, error, error_size) }
}

/// Frees a matrix; null is accepted.
///
/// # Safety
/// `matrix` came from [`statecells_matrix_new`], is freed once, and no call on it is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_matrix_free(matrix: *mut Matrix) {
    // SAFETY: the caller's promises.
    unsafe { free(matrix) }
}

/// 1 if what `a` prepares of an input does for `b` as well.
///
/// # Safety
/// Each is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_matrix_prepares_like(
    a: *const Matrix,
    b: *const Matrix,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { alike(a, b, Matrix::prepares_like) }
}

/// This thread's share of the step before the projection or the look-up. 0 on success.
///
/// # Safety
/// `matrix` is live; `x` leads to `[d_in, n_tokens]` floats, `prepared` to `prepared_bytes` writable bytes aligned
/// to 4; all `nth` threads get the same buffers and only these write to `prepared` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_prepare(
    matrix: *const Matrix,
    x: *const f32,
    n_tokens: i64,
    prepared: *mut c_void,
    prepared_bytes: usize,
    ith: i32,
    nth: i32,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises a live matrix.
        let matrix = unsafe { matrix.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        let (call, n_inputs, _) = Call::check(matrix.shape(), n_tokens, ith, nth)?;
        // SAFETY: the caller promises [d_in, n_tokens] floats.
        let x = unsafe { bytes_of(x, n_inputs)? };
        // SAFETY: the caller promises `prepared_bytes` writable bytes, shared by the threads of this call only.
        let out = unsafe { SharedOutput::new(prepared.cast::<u8>(), prepared_bytes)? };
        matrix.prepare(x, call, &out)
    });
    if result.is_err() {
        // SAFETY: as above.
        if let Some(matrix) = unsafe { matrix.as_ref() } {
            matrix.give_up();
        }
    }
    i32::from(result.is_err())
}

/// This thread's share of the product. 0 on success; otherwise its share of `y` is NaN, unless `matrix`, `n_tokens`, `ith`,
/// `nth` or `y` is what was refused: then there is no share that could be written.
///
/// # Safety
/// As [`statecells_prepare`]; `y` leads to `[d_out, n_tokens]` writable floats, `prepared` to `prepared_bytes` bytes
/// written by the steps of the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_apply(
    matrix: *const Matrix,
    x: *const f32,
    prepared: *const c_void,
    prepared_bytes: usize,
    n_tokens: i64,
    y: *mut f32,
    ith: i32,
    nth: i32,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises a live matrix.
        let matrix = unsafe { matrix.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        let (call, n_inputs, n_outputs) = Call::check(matrix.shape(), n_tokens, ith, nth)?;
        // SAFETY: the caller promises [d_out, n_tokens] floats, written by the threads of this call only.
        let out = unsafe { SharedOutput::new(y, n_outputs)? };
        // Neither a refusal nor a panic must pass by the filling.
        let result = guarded(|| {
            // SAFETY: the caller promises [d_in, n_tokens] floats.
            let x = unsafe { bytes_of(x, n_inputs)? };
            // SAFETY: the caller promises `prepared_bytes` readable bytes, complete behind the pool's barrier.
            let prepared = unsafe { bytes_of(prepared.cast::<u8>(), prepared_bytes)? };
            matrix.apply(x, prepared, call, &out)
        });
        if result.is_err() {
            matrix.void(call, &out)?;
        }
        result
    });
    i32::from(result.is_err())
}

/// Looks for values that are not finite in this thread's tokens of `x` and rows of `y`. 0 if there are none or the
/// call is refused, else 1 and `finding`.
///
/// # Safety
/// As [`statecells_apply`], which this thread has called with the same numbers; `finding` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_check(
    matrix: *const Matrix,
    x: *const f32,
    y: *const f32,
    n_tokens: i64,
    ith: i32,
    nth: i32,
    finding: *mut StatecellsFinding,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises a live matrix.
        let matrix = unsafe { matrix.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        let (call, n_inputs, n_outputs) = Call::check(matrix.shape(), n_tokens, ith, nth)?;
        let share = Share::new(matrix.shape(), call)?;
        // SAFETY: the caller promises [d_in, n_tokens] floats.
        if let Some(found) = share.input(unsafe { bytes_of(x, n_inputs)? }) {
            return Ok(Some(found));
        }
        for (token, part) in share.outputs().enumerate() {
            // SAFETY: the caller promises [d_out, n_tokens] floats, and this thread alone wrote this part.
            let y = unsafe { part_of(y, n_outputs, part)? };
            if let Some(found) = share.output(token, y) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    });
    // SAFETY: the caller's promise on `finding`.
    unsafe { write_finding(&result, finding) }
}

#[cfg(test)]
mod tests {
    use format::MatrixShape;

    use super::*;

    const D_IN: usize = 5;
    const D_OUT: usize = 70;

    /// Thread `ith` of two applies `matrix` to two tokens.
    fn apply(matrix: &Matrix, y: &mut [f32], ith: i32) -> i32 {
        let x = [1.0f32; 2 * D_IN];
        // SAFETY: live buffers of the promised sizes.
        unsafe {
            statecells_apply(matrix, x.as_ptr(), std::ptr::null(), 0, 2, y.as_mut_ptr(), ith, 2)
        }
    }

    /// Thread `ith` of two, without an input.
    fn apply_to_nothing(matrix: &Matrix, y: *mut f32, n_tokens: i64, ith: i32) -> i32 {
        let (x, p) = (std::ptr::null(), std::ptr::null());
        // SAFETY: `y` is null or leads to n_tokens columns; nothing is read.
        unsafe { statecells_apply(matrix, x, p, 0, n_tokens, y, ith, 2) }
    }

    #[test]
    fn a_refused_product_makes_the_share_of_its_thread_nan() {
        let matrix = Matrix::with_defect(MatrixShape::new(D_IN, D_OUT));
        let mut y = [1.0f32; 2 * D_OUT];
        assert_ne!(apply_to_nothing(&matrix, y.as_mut_ptr(), 2, 0), 0);
        let rows = statecells_kernels::Part::new(0, 2).unwrap().rows(D_OUT);
        assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == rows.contains(&(i % D_OUT))));
        assert_ne!(apply_to_nothing(&matrix, y.as_mut_ptr(), 2, 1), 0);
        assert!(y.iter().all(|y| y.is_nan()));
    }

    /// Without a share, nothing may be written.
    #[test]
    fn a_product_of_no_thread_writes_nothing() {
        let matrix = Matrix::with_defect(MatrixShape::new(D_IN, D_OUT));
        let mut y = [1.0f32; 2 * D_OUT];
        for (n_tokens, ith) in [(2, 2), (2, -1), (-1, 0), (i64::MAX, 0)] {
            assert_ne!(apply_to_nothing(&matrix, y.as_mut_ptr(), n_tokens, ith), 0);
        }
        assert_ne!(apply_to_nothing(&matrix, std::ptr::null_mut(), 2, 0), 0);
        assert_eq!(y, [1.0; 2 * D_OUT]);
    }

    #[test]
    fn a_check_without_outputs_reads_nothing() {
        let matrix = Matrix::with_defect(MatrixShape::new(D_IN, D_OUT));
        let x = [1.0f32; 2 * D_IN];
        for ith in [0, 1] {
            let mut finding = StatecellsFinding::default();
            // SAFETY: a null `y` is refused, also where this thread's part of it would begin elsewhere.
            let found = unsafe {
                let y = std::ptr::null();
                statecells_check(&raw const matrix, x.as_ptr(), y, 2, ith, 2, &mut finding)
            };
            assert_eq!((found, finding), (0, StatecellsFinding::default()));
        }
    }

    #[test]
    fn a_panic_in_a_product_makes_the_share_of_its_thread_nan() {
        let matrix = Matrix::with_defect(MatrixShape::new(D_IN, D_OUT));
        let mut y = [1.0f32; 2 * D_OUT];
        assert_ne!(apply(&matrix, &mut y, 1), 0);
        let rows = statecells_kernels::Part::new(1, 2).unwrap().rows(D_OUT);
        let mine = |i: usize| rows.contains(&(i % D_OUT));
        assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == mine(i)), "{y:?}");
        assert_ne!(apply(&matrix, &mut y, 0), 0);
        assert!(y.iter().all(|y| y.is_nan()));
    }
}
