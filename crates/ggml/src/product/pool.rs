//! ggml's threads.

use std::ptr::NonNull;

use ggml_sys as sys;

use super::ProductError;

/// The threads that run graphs, as the programs of llama.cpp make them: they stay from run to run and wait
/// at ggml's own barriers. (Where ggml was built with OpenMP, these are OpenMP's threads.)
#[derive(Debug)]
pub struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    n_threads: i32,
}

impl ThreadPool {
    /// A pool of `n_threads` threads, the calling one included.
    ///
    /// # Errors
    /// [`ProductError::Range`] unless `n_threads` is 1 to 512, ggml's limit.
    pub fn new(n_threads: usize) -> Result<Self, ProductError> {
        if n_threads == 0 || n_threads > sys::GGML_MAX_N_THREADS as usize {
            return Err(ProductError::Range("the number of threads"));
        }
        let n_threads = i32::try_from(n_threads).expect("at most 512");
        // SAFETY: the parameters are ggml's own, for a number of threads within its limit.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n_threads);
            sys::ggml_threadpool_new(&raw mut params)
        };
        Ok(Self { raw: NonNull::new(raw).expect("out of memory"), n_threads })
    }

    /// Number of threads.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.n_threads.unsigned_abs() as usize
    }

    /// Work memory that `graph` needs on these threads.
    ///
    /// # Safety
    /// The graph is valid.
    pub(super) unsafe fn plan(&self, graph: *mut sys::ggml_cgraph) -> sys::ggml_cplan {
        // SAFETY: promised by the caller; the pool is live.
        unsafe { sys::ggml_graph_plan(graph, self.n_threads, self.raw.as_ptr()) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: it came from ggml_threadpool_new, is freed only here, and no graph runs: graphs borrow it.
        unsafe { sys::ggml_threadpool_free(self.raw.as_ptr()) }
    }
}
