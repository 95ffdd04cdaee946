//! Owner of a `ggml_context`, which holds descriptions of tensors but never their data.

use std::ptr::NonNull;

use ggml_sys as sys;

use crate::Type;
use crate::log;

/// A `ggml_context` without data, freed when dropped; what was made from it must not outlive it.
#[derive(Debug)]
pub(crate) struct Arena(NonNull<sys::ggml_context>);

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the pointer came from ggml_init and is freed only here.
        unsafe { sys::ggml_free(self.0.as_ptr()) }
    }
}

impl Arena {
    /// Room for `n_tensors` tensors and `graph_bytes` for a graph.
    pub fn new(n_tensors: usize, graph_bytes: usize) -> Self {
        log::install();
        // SAFETY: no preconditions; ggml allocates the memory itself.
        let raw = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: n_tensors * sys::ggml_tensor_overhead() + graph_bytes,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        Self(NonNull::new(raw).expect("out of memory"))
    }

    pub fn as_mut_ptr(&mut self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }

    /// A tensor without data.
    ///
    /// # Safety
    /// There must be room for it, and the size of `ne` elements of `ty` must not overflow.
    pub unsafe fn tensor(&mut self, ty: Type, ne: &[i64; 4]) -> *mut sys::ggml_tensor {
        // SAFETY: four dimensions are given; the rest is promised by the caller.
        unsafe { sys::ggml_new_tensor(self.as_mut_ptr(), ty.raw(), 4, ne.as_ptr()) }
    }
}
