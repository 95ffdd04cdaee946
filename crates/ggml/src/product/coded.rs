//! Coded matrices: the graph nodes of the patched llama.cpp, around the same C functions of the hook.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use format::{MatrixShape, Sidecar};
use ggml_sys as sys;
use statecells_hook as hook;

use super::graph::Nodes;
use super::memory::{MemoryKind, Resident};
use super::{ProductError, to_i64};
use crate::Type;

/// A matrix that the run-time hook multiplies with, and its sidecars in plain memory.
#[derive(Debug)]
pub struct CodedWeight {
    shape: MatrixShape,
    plan: hook::StatecellsPlan,
    prepared_type: Type,
    /// At a fixed address, which the graph's nodes hold; dropped before the sidecars, which it reads.
    live: Box<Live>,
    sidecars: Vec<(CString, Resident)>,
}

/// What the nodes need while they run.
#[derive(Debug)]
struct Live {
    matrix: NonNull<hook::Matrix>,
    failed: AtomicBool,
}

impl Drop for Live {
    fn drop(&mut self) {
        // SAFETY: the matrix came from statecells_matrix_new and is freed only here; no product runs,
        // since graphs borrow the weight.
        unsafe { hook::statecells_matrix_free(self.matrix.as_ptr()) }
    }
}

impl CodedWeight {
    /// The matrix that `sidecars` stand for under `scheme`.
    ///
    /// # Errors
    /// [`ProductError::Hook`] with the hook's reason, [`ProductError::Memory`].
    pub fn new(
        scheme: &str,
        shape: MatrixShape,
        sidecars: &[Sidecar],
    ) -> Result<Self, ProductError> {
        let sidecars = sidecars.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let (plan, matrix) = open(scheme, shape, &sidecars)?;
        let live = Box::new(Live { matrix, failed: AtomicBool::new(false) });
        let prepared_type = Type::try_from(u32::try_from(plan.prepared_type).unwrap_or(u32::MAX))?;
        Ok(Self { shape, plan, prepared_type, live, sidecars })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Bytes of all sidecars.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.sidecars.iter().map(|(_, tensor)| tensor.n_bytes()).sum()
    }

    /// Whether the hook refused a call since the matrix was made.
    pub(super) fn has_failed(&self) -> bool {
        self.live.failed.load(Ordering::Relaxed)
    }

    /// The atoms, if the plan projects on them.
    fn dict(&self) -> Option<&Resident> {
        let is_dict = |(suffix, _): &&(CString, Resident)| suffix.as_c_str() == c"dict";
        let found = self.sidecars.iter().find(is_dict).map(|(_, dict)| dict);
        found.filter(|_| self.plan.project != 0)
    }

    fn prepared_ne0(&self) -> Option<usize> {
        usize::try_from(self.plan.prepared_ne0).ok().filter(|&n| n > 0)
    }

    /// Columns of the first step's result for each token; 1 where there is no such step.
    fn columns_per_token(&self) -> usize {
        match self.prepared_ne0() {
            Some(_) => usize::try_from(self.plan.prepared_columns).unwrap_or(0),
            None => 1,
        }
    }

    /// Sizes of the results before the last one.
    pub(super) fn intermediate_bytes(&self, n_tokens: usize) -> Result<Vec<usize>, ProductError> {
        let n_columns = self.columns_per_token().checked_mul(n_tokens);
        let n_columns = n_columns.ok_or(ProductError::Range("an intermediate result"))?;
        let prepared = self.prepared_ne0().map(|n| bytes_of(self.prepared_type, n, n_columns));
        let projected = self.dict().map(|dict| bytes_of(Type::F32, dict.dims()[1], n_columns));
        prepared.into_iter().chain(projected).collect()
    }

    /// The nodes of the product, as `llama_statecells_mul_mat` of the patched llama.cpp makes them.
    ///
    /// # Safety
    /// `nodes` has room for [`super::graph`]'s number of tensors, an input of this matrix and scratch memory
    /// for its intermediate results; `self` outlives the graph.
    pub(super) unsafe fn append(&self, nodes: &mut Nodes<'_>) -> *mut sys::ggml_tensor {
        let x = nodes.x;
        let mut scratch = nodes.scratch.iter();
        let mut prepared = x;
        // SAFETY: `x` is live, the arena has room, and every intermediate result gets the scratch buffer
        // whose size `intermediate_bytes` told; the dictionary has the rows of its input.
        unsafe {
            let n_tokens = (*x).ne[1];
            if let Some(ne0) = self.prepared_ne0() {
                let ty = self.prepared_type;
                let ne = [to_i64(ne0), self.plan.prepared_columns * n_tokens];
                prepared = self.custom(nodes, ty, ne, &mut [x], prepare);
                scratch.next().expect("counted before").place(prepared);
            }
            if let Some(dict) = self.dict() {
                prepared = sys::ggml_mul_mat(nodes.arena.as_mut_ptr(), dict.as_ptr(), prepared);
                scratch.next().expect("counted before").place(prepared);
            }
            let ne = [to_i64(self.shape.d_out), n_tokens];
            self.custom(nodes, Type::F32, ne, &mut [x, prepared], apply)
        }
    }

    /// A node that all threads of the pool compute by calling `function`.
    ///
    /// # Safety
    /// As [`Self::append`]; `sources` are live and what `function` expects.
    unsafe fn custom(
        &self,
        nodes: &mut Nodes<'_>,
        ty: Type,
        ne: [i64; 2],
        sources: &mut [*mut sys::ggml_tensor],
        function: unsafe extern "C" fn(*mut sys::ggml_tensor, c_int, c_int, *mut c_void),
    ) -> *mut sys::ggml_tensor {
        // SAFETY: promised by the caller; `live` stays at its address as long as `self`.
        unsafe {
            sys::ggml_custom_4d(
                nodes.arena.as_mut_ptr(),
                ty.raw(),
                ne[0],
                ne[1],
                1,
                1,
                sources.as_mut_ptr(),
                c_int::try_from(sources.len()).expect("at most two"),
                Some(function),
                sys::GGML_N_TASKS_MAX,
                std::ptr::from_ref::<Live>(&self.live).cast_mut().cast(),
            )
        }
    }
}

/// Bytes of `[ne0, n_columns]` elements of `ty`.
pub(super) fn bytes_of(ty: Type, ne0: usize, n_columns: usize) -> Result<usize, ProductError> {
    let n_bytes = ty.tensor_bytes(&[ne0, n_columns]);
    n_bytes.filter(|&n| n > 0).ok_or(ProductError::Range("an intermediate result"))
}

/// A sidecar in plain memory.
pub(super) fn place(sidecar: &Sidecar) -> Result<(CString, Resident), ProductError> {
    let suffix = CString::new(sidecar.spec.suffix).expect("suffixes are plain words");
    let ty = Type::from(sidecar.spec.element_type);
    let tensor = Resident::new(MemoryKind::plain(), ty, &sidecar.spec.dims, &sidecar.data)?;
    Ok((suffix, tensor))
}

/// A sidecar as the hook wants it described, valid as long as the sidecar.
pub(super) fn describe((suffix, tensor): &(CString, Resident)) -> hook::StatecellsTensor {
    hook::StatecellsTensor {
        suffix: suffix.as_ptr(),
        ggml_type: i32::try_from(tensor.ty().raw()).expect("ggml's types are small numbers"),
        ne: tensor.dims().map(to_i64),
        data: tensor.data().cast(),
        n_bytes: tensor.n_bytes(),
    }
}

/// Plan and matrix of the hook.
fn open(
    scheme: &str,
    shape: MatrixShape,
    sidecars: &[(CString, Resident)],
) -> Result<(hook::StatecellsPlan, NonNull<hook::Matrix>), ProductError> {
    let scheme = CString::new(scheme).map_err(|_| ProductError::Hook("scheme".to_owned()))?;
    let tensors: Vec<_> = sidecars.iter().map(describe).collect();
    let (d_in, d_out) = (to_i64(shape.d_in), to_i64(shape.d_out));
    let mut plan = hook::StatecellsPlan::default();
    let mut error = [0 as c_char; 256];
    // SAFETY: a C string, live descriptions whose data stay until the matrix is freed, a writable plan and
    // room for the error, which ends with a zero.
    unsafe {
        let status = hook::statecells_plan_matrix(
            scheme.as_ptr(),
            d_in,
            d_out,
            tensors.as_ptr(),
            tensors.len(),
            &raw mut plan,
            error.as_mut_ptr(),
            error.len(),
        );
        let matrix = if status == 0 {
            hook::statecells_matrix_new(
                scheme.as_ptr(),
                d_in,
                d_out,
                tensors.as_ptr(),
                tensors.len(),
                error.as_mut_ptr(),
                error.len(),
            )
        } else {
            std::ptr::null_mut()
        };
        let reason = || CStr::from_ptr(error.as_ptr()).to_string_lossy().into_owned();
        let matrix = NonNull::new(matrix).ok_or_else(|| ProductError::Hook(reason()))?;
        Ok((plan, matrix))
    }
}

/// The first step of a product, on thread `ith` of `nth`.
///
/// # Safety
/// ggml calls it for a node made by [`CodedWeight::append`].
unsafe extern "C" fn prepare(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    live: *mut c_void,
) {
    // SAFETY: the node's first source is x, its user data a `Live` that outlives the graph; sources are
    // complete and nobody but the threads of this call writes to the node.
    unsafe {
        let live = &*live.cast_const().cast::<Live>();
        let x = (*dst).src[0];
        let status = hook::statecells_prepare(
            live.matrix.as_ptr(),
            (*x).data.cast::<f32>(),
            sys::ggml_nrows(x),
            (*dst).data,
            sys::ggml_nbytes(dst),
            ith,
            nth,
        );
        if status != 0 {
            live.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The last step of a product, on thread `ith` of `nth`.
///
/// # Safety
/// As [`prepare`].
unsafe extern "C" fn apply(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, live: *mut c_void) {
    // SAFETY: as in `prepare`; the second source is the result of the step before.
    unsafe {
        let live = &*live.cast_const().cast::<Live>();
        let (x, prepared) = ((*dst).src[0], (*dst).src[1]);
        let status = hook::statecells_apply(
            live.matrix.as_ptr(),
            (*x).data.cast::<f32>(),
            (*prepared).data,
            sys::ggml_nbytes(prepared),
            sys::ggml_nrows(x),
            (*dst).data.cast::<f32>(),
            ith,
            nth,
        );
        if status != 0 {
            live.failed.store(true, Ordering::Relaxed);
        }
    }
}
