//! What every exported function does at the border: no panic leaves, results become a status or a pointer.

use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::arguments::write_error;
use crate::c_types::{StatecellsFinding, StatecellsPlan};
use crate::check::Finding;
use crate::error::HookError;
use crate::product::Plan;

/// Runs `body`; a panic becomes an error instead of unwinding into C++.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T, HookError>) -> Result<T, HookError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(HookError::Panic))
}

/// 0, or 1 and the reason in `error`.
///
/// # Safety
/// `error` is null or has room for `size` bytes.
pub(crate) unsafe fn status(result: Result<(), HookError>, error: *mut c_char, size: usize) -> i32 {
    match result {
        Ok(()) => 0,
        Err(e) => {
            // SAFETY: the caller's promise.
            unsafe { write_error(&e, error, size) };
            1
        }
    }
}

/// Writes the plan. 0, or 1 and the reason in `error`.
///
/// # Safety
/// `plan` is null or writable; `error` as for [`status`].
pub(crate) unsafe fn write_plan(
    found: Result<Plan, HookError>,
    plan: *mut StatecellsPlan,
    error: *mut c_char,
    size: usize,
) -> i32 {
    let result = found.and_then(|found| {
        // SAFETY: null is refused by as_mut; otherwise the caller promises that it is writable.
        let plan = unsafe { plan.as_mut() }.ok_or(HookError::Call("nowhere to write the plan"))?;
        *plan = found.into();
        Ok(())
    });
    // SAFETY: the caller's promise on `error` and `size`.
    unsafe { status(result, error, size) }
}

/// A pointer that [`free`] takes back, or null and the reason in `error`.
///
/// # Safety
/// `error` as for [`status`].
pub(crate) unsafe fn handed_out<T>(
    made: Result<T, HookError>,
    error: *mut c_char,
    size: usize,
) -> *mut T {
    match made {
        Ok(made) => Box::into_raw(Box::new(made)),
        Err(e) => {
            // SAFETY: the caller's promise on `error` and `size`.
            unsafe { write_error(&e, error, size) };
            std::ptr::null_mut()
        }
    }
}

/// 1 if `alike` says so of both.
///
/// # Safety
/// Each is null or live.
pub(crate) unsafe fn alike<T>(a: *const T, b: *const T, alike: impl Fn(&T, &T) -> bool) -> i32 {
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (a.as_ref(), b.as_ref()) };
    let answer = guarded(|| Ok(a.zip(b).is_some_and(|(a, b)| alike(a, b))));
    i32::from(answer == Ok(true))
}

/// Drops what [`handed_out`] made; null is accepted.
///
/// # Safety
/// It came from there, is freed once, and no call on it is under way.
pub(crate) unsafe fn free<T>(made: *mut T) {
    if !made.is_null() {
        // SAFETY: it came from Box::into_raw and is freed once, as the caller promises.
        let made = unsafe { Box::from_raw(made) };
        let _ = guarded(|| {
            drop(made);
            Ok(())
        });
    }
}

/// Writes what was found. 1 if that is something, else 0.
///
/// # Safety
/// `finding` is null or writable.
pub(crate) unsafe fn write_finding(
    found: &Result<Option<Finding>, HookError>,
    finding: *mut StatecellsFinding,
) -> i32 {
    match found {
        Ok(Some(found)) if !finding.is_null() => {
            // SAFETY: not null, and the caller promises that it is writable.
            unsafe { finding.write((*found).into()) };
            1
        }
        _ => 0,
    }
}
