//! Raw bindings to the pinned ggml, gguf and (feature `llama`) llama.cpp.
//!
//! Nothing here is safe to call without reading the C headers; `crates/ggml` and `crates/llama` are the safe layer. C enums
//! are plain integer constants, since files may hold values that no header knows.
//!
//! The libraries are built by `scripts/build-llama.sh`, whose output `build/locate.rs` finds.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    rustdoc::all,
    clippy::all,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// What was linked: `llama.cpp 0.5.0-dev (build 0, commit unknown), ggml 0.25.3`.
pub const LLAMA_CPP_VERSION: &str = env!("STATECELLS_LLAMA_VERSION");

/// Hash of the patches in what was linked: 16 hexadecimal digits, or `unknown` for a tree that
/// `scripts/build-llama.sh` did not make.
pub const LLAMA_CPP_PATCHES: &str = env!("STATECELLS_LLAMA_PATCHES");

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn version_names_both_projects() {
        assert!(LLAMA_CPP_VERSION.starts_with("llama.cpp "), "{LLAMA_CPP_VERSION}");
        // SAFETY: ggml_version returns a static string.
        let linked = unsafe { CStr::from_ptr(ggml_version()) }.to_str().unwrap();
        assert!(
            LLAMA_CPP_VERSION.ends_with(&format!("ggml {linked}")),
            "{LLAMA_CPP_VERSION} {linked}"
        );
    }

    #[test]
    fn linked_library_has_the_types_of_the_header() {
        // SAFETY: the type is one of the header's.
        let name = unsafe { CStr::from_ptr(ggml_type_name(GGML_TYPE_Q5_K)) };
        assert_eq!(name, c"q5_K");
    }
}
