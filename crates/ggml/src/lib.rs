//! Safe layer over the pinned ggml: GGUF files, element types, dense products.
//!
//! Thin on purpose: one method per C function, no policy, no logging. ggml stops the process when it is
//! handed a wrong type or index; everything is checked before it is called, and comes back as an error.
//!
//! Shapes are in ggml order, innermost dimension first.

mod arena;
pub mod gguf;
pub mod imatrix;
#[cfg(feature = "llama")]
pub mod llama;
mod log;
mod mul_mat;
pub mod product;
pub mod quant_mix;
mod quantize;
mod types;

pub use mul_mat::MulMat;
pub use types::{Type, TypeError};

/// Version of the llama.cpp and ggml that this program is linked with.
pub const LLAMA_CPP_VERSION: &str = ggml_sys::LLAMA_CPP_VERSION;

/// What a program says to `--version`, its own `version` first: `0.1.0 (llama.cpp 0.5.0-dev (build 0, commit
/// unknown), ggml 0.25.3, patches 0123456789abcdef)`.
#[must_use]
pub fn version_line(version: &str) -> String {
    format!("{version} ({LLAMA_CPP_VERSION}, patches {})", ggml_sys::LLAMA_CPP_PATCHES)
}
