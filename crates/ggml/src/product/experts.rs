//! Coded matrices of experts: the graph nodes of the patched llama.cpp, around the same C functions of the hook.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use format::{ExpertStack, Sidecar};
use ggml_sys as sys;
use statecells_hook as hook;

use super::coded::{bytes_of, describe, place};
use super::graph::Nodes;
use super::memory::Resident;
use super::{ProductError, to_i64};
use crate::Type;

/// Matrices of experts that the run-time hook multiplies with, and their sidecars in plain memory.
#[derive(Debug)]
pub struct CodedExperts {
    stack: ExpertStack,
    plan: hook::StatecellsPlan,
    prepared_type: Type,
    /// At a fixed address, which the graph's nodes hold; dropped before the sidecars, which it reads.
    live: Box<Live>,
    sidecars: Vec<(CString, Resident)>,
}

/// What the nodes need while they run.
#[derive(Debug)]
struct Live {
    experts: NonNull<hook::Experts>,
    failed: AtomicBool,
}

impl Drop for Live {
    fn drop(&mut self) {
        // SAFETY: the matrices came from statecells_experts_new and are freed only here; no product runs, since graphs
        // borrow the weight.
        unsafe { hook::statecells_experts_free(self.experts.as_ptr()) }
    }
}

impl CodedExperts {
    /// The matrices that `sidecars` stand for under `scheme`.
    ///
    /// # Errors
    /// [`ProductError::Hook`] with the hook's reason, [`ProductError::Memory`].
    pub fn new(
        scheme: &str,
        stack: ExpertStack,
        sidecars: &[Sidecar],
    ) -> Result<Self, ProductError> {
        let sidecars = sidecars.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let (plan, experts) = open(scheme, stack, &sidecars)?;
        let live = Box::new(Live { experts, failed: AtomicBool::new(false) });
        let prepared_type = Type::try_from(u32::try_from(plan.prepared_type).unwrap_or(u32::MAX))?;
        Ok(Self { stack, plan, prepared_type, live, sidecars })
    }

    /// Shapes.
    #[must_use]
    pub fn stack(&self) -> ExpertStack {
        self.stack
    }

    /// Bytes of all sidecars.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.sidecars.iter().map(|(_, tensor)| tensor.n_bytes()).sum()
    }

    /// Whether the hook refused a call since the matrices were made.
    pub(super) fn has_failed(&self) -> bool {
        self.live.failed.load(Ordering::Relaxed)
    }

    /// Size of what is prepared of `n_tokens` columns.
    pub(super) fn intermediate_bytes(&self, n_tokens: usize) -> Result<Vec<usize>, ProductError> {
        let ne0 = usize::try_from(self.plan.prepared_ne0).unwrap_or(0);
        Ok(vec![bytes_of(self.prepared_type, ne0, n_tokens)?])
    }

    /// The nodes of the product, as `llama_statecells_mul_mat_id` of the patched llama.cpp makes them.
    ///
    /// # Safety
    /// `nodes` has room for [`super::graph`]'s number of tensors, inputs, ids of these experts and scratch memory for what is
    /// prepared; `self` outlives the graph.
    pub(super) unsafe fn append(
        &self,
        nodes: &mut Nodes<'_>,
        ids: *mut sys::ggml_tensor,
    ) -> *mut sys::ggml_tensor {
        let (x, arena) = (nodes.x, nodes.arena.as_mut_ptr());
        let live = std::ptr::from_ref::<Live>(&self.live).cast_mut().cast();
        // SAFETY: x and ids are live, the arena has room, and what is prepared gets the scratch buffer whose size
        // `intermediate_bytes` told.
        unsafe {
            let (ty, n_columns) = (self.prepared_type.raw(), (*x).ne[1] * (*x).ne[2]);
            let (ne0, sources) = (self.plan.prepared_ne0, &mut [x, ids]);
            let all = sys::GGML_N_TASKS_MAX;
            let prepared = sys::ggml_custom_4d(
                arena,
                ty,
                ne0,
                n_columns,
                1,
                1,
                sources.as_mut_ptr(),
                2,
                Some(prepare),
                all,
                live,
            );
            nodes.scratch[0].place(prepared);
            let (d_out, sources) = (to_i64(self.stack.each.d_out), &mut [x, ids, prepared]);
            sys::ggml_custom_4d(
                arena,
                Type::F32.raw(),
                d_out,
                (*ids).ne[0],
                (*ids).ne[1],
                1,
                sources.as_mut_ptr(),
                3,
                Some(apply),
                all,
                live,
            )
        }
    }
}

/// Plan and matrices of the hook.
fn open(
    scheme: &str,
    stack: ExpertStack,
    sidecars: &[(CString, Resident)],
) -> Result<(hook::StatecellsPlan, NonNull<hook::Experts>), ProductError> {
    let scheme = CString::new(scheme).map_err(|_| ProductError::Hook("scheme".to_owned()))?;
    let tensors: Vec<_> = sidecars.iter().map(describe).collect();
    let [d_in, d_out, n] = [stack.each.d_in, stack.each.d_out, stack.n_experts].map(to_i64);
    let mut plan = hook::StatecellsPlan::default();
    let mut error = [0 as c_char; 256];
    let (tensors, n_tensors) = (tensors.as_ptr(), tensors.len());
    let (text, size) = (error.as_mut_ptr(), error.len());
    // SAFETY: a C string, live descriptions whose data stay until the matrices are freed, a writable plan and room for the
    // error, which ends with a zero.
    unsafe {
        let scheme = scheme.as_ptr();
        let out = &raw mut plan;
        let status = hook::statecells_plan_experts(
            scheme, d_in, d_out, n, tensors, n_tensors, out, text, size,
        );
        let experts = match status {
            0 => {
                hook::statecells_experts_new(scheme, d_in, d_out, n, tensors, n_tensors, text, size)
            }
            _ => std::ptr::null_mut(),
        };
        let reason = || CStr::from_ptr(text).to_string_lossy().into_owned();
        let experts = NonNull::new(experts).ok_or_else(|| ProductError::Hook(reason()))?;
        Ok((plan, experts))
    }
}

/// Inputs and ids of a node.
///
/// # Safety
/// The node's first two sources are x and ids, and live.
unsafe fn routed(node: *const sys::ggml_tensor) -> hook::StatecellsRouted {
    // SAFETY: promised by the caller.
    unsafe {
        let (x, ids) = ((*node).src[0], (*node).src[1]);
        hook::StatecellsRouted {
            x: (*x).data.cast::<f32>(),
            ids: (*ids).data.cast::<i32>(),
            n_columns: (*x).ne[1] * (*x).ne[2],
            n_used: (*ids).ne[0],
            n_tokens: (*ids).ne[1],
            ids_stride: (*ids).ne[0],
        }
    }
}

/// The first step of a product, on thread `ith` of `nth`.
///
/// # Safety
/// ggml calls it for a node made by [`CodedExperts::append`].
unsafe extern "C" fn prepare(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    live: *mut c_void,
) {
    // SAFETY: the node's user data is a `Live` that outlives the graph; sources are complete and nobody but the threads of
    // this call writes to the node.
    unsafe {
        let (live, routed) = (&*live.cast_const().cast::<Live>(), routed(dst));
        let (experts, out, n) = (live.experts.as_ptr(), (*dst).data, sys::ggml_nbytes(dst));
        if hook::statecells_prepare_experts(experts, &raw const routed, out, n, ith, nth) != 0 {
            live.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The last step of a product, on thread `ith` of `nth`.
///
/// # Safety
/// As [`prepare`].
unsafe extern "C" fn apply(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, live: *mut c_void) {
    // SAFETY: as in `prepare`; the third source is the result of the step before.
    unsafe {
        let (live, routed) = (&*live.cast_const().cast::<Live>(), routed(dst));
        let (prepared, y) = ((*dst).src[2], (*dst).data.cast::<f32>());
        let (data, n) = ((*prepared).data, sys::ggml_nbytes(prepared));
        let experts = live.experts.as_ptr();
        if hook::statecells_apply_experts(experts, &raw const routed, data, n, y, ith, nth) != 0 {
            live.failed.store(true, Ordering::Relaxed);
        }
    }
}
