//! The exported C functions for experts; `include/statecells.h` is their documentation.

use std::ffi::{c_char, c_void};

use crate::arguments::{described, stack};
use crate::border::{alike, free, guarded, handed_out, write_finding, write_plan};
use crate::buffer::{SharedOutput, bytes_of, part_of};
use crate::c_types::{StatecellsFinding, StatecellsPlan, StatecellsRouted, StatecellsTensor};
use crate::error::HookError;
use crate::experts::{Experts, Thread};
use crate::routed::{Counts, Routed};
use crate::schemes;

/// Checks types and shapes of the sidecars of `n_experts` matrices, without data, and fills `plan`. 0 on success.
///
/// # Safety
/// As [`crate::statecells_plan_matrix`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_plan_experts(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    n_experts: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
    plan: *mut StatecellsPlan,
    error: *mut c_char,
    error_size: usize,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: the caller's promises on `scheme` and `tensors`.
        let (scheme, sidecars) = unsafe { described(scheme, tensors, n_tensors)? };
        schemes::plan_experts(scheme, stack(d_in, d_out, n_experts)?, &sidecars)
    });
    // SAFETY: the caller's promises on `plan`, `error` and `error_size`.
    unsafe { write_plan(result, plan, error, error_size) }
}

/// Checks everything and makes the matrices; null and `error` if something is wrong.
///
/// # Safety
/// As [`crate::statecells_matrix_new`], until [`statecells_experts_free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_experts_new(
    scheme: *const c_char,
    d_in: i64,
    d_out: i64,
    n_experts: i64,
    tensors: *const StatecellsTensor,
    n_tensors: usize,
    error: *mut c_char,
    error_size: usize,
) -> *mut Experts {
    let result = guarded(|| {
        // SAFETY: the caller's promises on `scheme`, `tensors` and their data.
        let (scheme, sidecars) = unsafe { described(scheme, tensors, n_tensors)? };
        Experts::new(scheme, stack(d_in, d_out, n_experts)?, &sidecars)
    });
    // SAFETY: the caller's promise on `error` and `error_size`.
    unsafe { handed_out(result, error, error_size) }
}

/// Frees the matrices; null is accepted.
///
/// # Safety
/// `experts` came from [`statecells_experts_new`], is freed once, and no call on it is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_experts_free(experts: *mut Experts) {
    // SAFETY: the caller's promises.
    unsafe { free(experts) }
}

/// 1 if what `a` prepares of an input does for `b` as well.
///
/// # Safety
/// Each is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_experts_prepares_like(
    a: *const Experts,
    b: *const Experts,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { alike(a, b, Experts::prepares_like) }
}

/// What the host passes for one call.
///
/// # Safety
/// `routed` is null or leads to a description whose `x` and `ids` are as the header says.
unsafe fn routed<'a>(
    experts: &Experts,
    routed: *const StatecellsRouted,
) -> Result<Routed<'a>, HookError> {
    // SAFETY: the caller's promise.
    let routed = unsafe { routed.as_ref() }.ok_or(HookError::Call("no inputs"))?;
    let count = |n: i64| {
        usize::try_from(n).map_err(|_| HookError::Call("columns, experts or tokens out of range"))
    };
    let counts = Counts {
        n_columns: count(routed.n_columns)?,
        n_used: count(routed.n_used)?,
        n_tokens: count(routed.n_tokens)?,
        ids_stride: count(routed.ids_stride)?,
    };
    let stack = experts.stack();
    counts.check(stack)?;
    // SAFETY: the caller promises [d_in, n_columns] floats and the ids; nothing overflows (checked).
    let (x, ids) = unsafe {
        (
            bytes_of(routed.x, stack.each.d_in * counts.n_columns)?,
            bytes_of(routed.ids, counts.n_ids())?,
        )
    };
    Routed::new(stack, counts, x, ids)
}

/// This thread's share of what all experts need of the inputs. 0 on success.
///
/// # Safety
/// `experts` is live; `call` describes readable inputs; `prepared` leads to `prepared_bytes` writable bytes; all `nth` threads get
/// the same buffers and only these write to `prepared` meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_prepare_experts(
    experts: *const Experts,
    call: *const StatecellsRouted,
    prepared: *mut c_void,
    prepared_bytes: usize,
    ith: i32,
    nth: i32,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises live matrices.
        let experts = unsafe { experts.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        // SAFETY: the caller's promise on the call.
        let routed = unsafe { routed(experts, call)? };
        // SAFETY: the caller promises `prepared_bytes` writable bytes, shared by the threads of this call only.
        let out = unsafe { SharedOutput::new(prepared.cast::<u8>(), prepared_bytes)? };
        experts.prepare(&routed, Thread::check(ith, nth)?, &out)
    });
    if result.is_err() {
        // SAFETY: as above.
        if let Some(experts) = unsafe { experts.as_ref() } {
            experts.give_up();
        }
    }
    i32::from(result.is_err())
}

/// This thread's share of the product. 0 on success; otherwise its share of `y` is NaN, unless what was refused leaves no
/// share that could be written.
///
/// # Safety
/// As [`statecells_prepare_experts`]; `y` leads to `[d_out, n_used, n_tokens]` writable floats, `prepared` to
/// `prepared_bytes` bytes written by the steps of the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_apply_experts(
    experts: *const Experts,
    call: *const StatecellsRouted,
    prepared: *const c_void,
    prepared_bytes: usize,
    y: *mut f32,
    ith: i32,
    nth: i32,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises live matrices.
        let experts = unsafe { experts.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        let thread = Thread::check(ith, nth)?;
        // SAFETY: the caller's promise on the call.
        let routed = unsafe { routed(experts, call)? };
        // SAFETY: the caller promises [d_out, n_used, n_tokens] floats, written by the threads of this call only.
        let out = unsafe { SharedOutput::new(y, routed.n_outputs())? };
        // Neither a refusal nor a panic must pass by the filling.
        let result = guarded(|| {
            // SAFETY: the caller promises `prepared_bytes` readable bytes, complete behind the pool's barrier.
            let prepared = unsafe { bytes_of(prepared.cast::<u8>(), prepared_bytes)? };
            experts.apply(&routed, prepared, thread, &out)
        });
        if result.is_err() {
            for (_, rows) in routed.share(thread.ith, thread.nth).outputs() {
                // SAFETY: the shares of two threads have no output in common.
                unsafe { out.part(rows)? }.fill(f32::NAN);
            }
        }
        result
    });
    i32::from(result.is_err())
}

/// Looks for values that are not finite in this thread's columns of x and its share of `y`. 0 if there are none or the call
/// is refused, else 1 and `finding`.
///
/// # Safety
/// As [`statecells_apply_experts`], which this thread has called with the same numbers; `finding` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_check_experts(
    experts: *const Experts,
    call: *const StatecellsRouted,
    y: *const f32,
    ith: i32,
    nth: i32,
    finding: *mut StatecellsFinding,
) -> i32 {
    let result = guarded(|| {
        // SAFETY: null is refused by as_ref; otherwise the caller promises live matrices.
        let experts = unsafe { experts.as_ref() }.ok_or(HookError::Call("no matrix"))?;
        let thread = Thread::check(ith, nth)?;
        // SAFETY: the caller's promise on the call.
        let routed = unsafe { routed(experts, call)? };
        let share = routed.share(thread.ith, thread.nth);
        if let Some(found) = share.input() {
            return Ok(Some(found));
        }
        for (slot, place) in share.outputs() {
            // SAFETY: the caller promises so many floats, and this thread alone wrote this part.
            let y = unsafe { part_of(y, routed.n_outputs(), place.clone())? };
            if let Some(found) = share.output(slot, place, y) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    });
    // SAFETY: the caller's promise on `finding`.
    unsafe { write_finding(&result, finding) }
}
