//! Safe layer over the pinned ggml: GGUF files, element types, products as llama.cpp runs them.
//!
//! Thin on purpose: one method per C function, no policy, no logging. ggml stops the process when it is
//! handed a wrong type or index; everything is checked before it is called, and comes back as an error.
//!
//! Shapes are in ggml order, innermost dimension first.

mod arena;
pub mod gguf;
pub mod imatrix;
pub mod log;
pub mod product;
pub mod quant_mix;
mod quantize;
mod types;

pub use types::{Type, TypeError};

/// Version of the llama.cpp and ggml that this program is linked with.
pub const LLAMA_CPP_VERSION: &str = ggml_sys::LLAMA_CPP_VERSION;

/// What a program says to `--version`, its own `version` first: `0.1.0 (llama.cpp 0.5.0-dev (build 0, commit
/// unknown), ggml 0.25.3, patches 0123456789abcdef)`.
#[must_use]
pub fn version_line(version: &str) -> String {
    format!("{version} ({LLAMA_CPP_VERSION}, patches {})", ggml_sys::LLAMA_CPP_PATCHES)
}

/// Instruction sets that ggml was compiled for, by which its products choose their kernels.
#[must_use]
pub fn compiled_sets() -> Vec<&'static str> {
    // SAFETY: no preconditions; each tells what was decided when it was compiled.
    let sets = unsafe {
        [
            ("sse3", ggml_sys::ggml_cpu_has_sse3()),
            ("avx", ggml_sys::ggml_cpu_has_avx()),
            ("avx2", ggml_sys::ggml_cpu_has_avx2()),
            ("fma", ggml_sys::ggml_cpu_has_fma()),
            ("f16c", ggml_sys::ggml_cpu_has_f16c()),
            ("avx512", ggml_sys::ggml_cpu_has_avx512()),
            ("neon", ggml_sys::ggml_cpu_has_neon()),
            ("fp16", ggml_sys::ggml_cpu_has_fp16_va()),
            ("sve", ggml_sys::ggml_cpu_has_sve()),
            ("llamafile", ggml_sys::ggml_cpu_has_llamafile()),
        ]
    };
    sets.into_iter().filter_map(|(name, is_there)| (is_there != 0).then_some(name)).collect()
}
