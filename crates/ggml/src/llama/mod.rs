//! Running models through llama.cpp, and looking at what its graph computes (feature `llama`).
//!
//! Enough to read the inputs of weights during evaluation: load, tokenize, decode on the CPU.

mod context;
mod error;
mod model;
mod node;

// The patched libllama calls the run-time hook; linking it here spares every program to remember it.
use statecells_hook as _;

pub use context::{Context, ContextParams, Outputs};
pub use error::LlamaError;
pub use model::{Model, ModelParams, Override};
pub use node::{Computed, Node, Observer};

/// A token number of a model's vocabulary.
pub type Token = ggml_sys::llama_token;

/// Proof that llama.cpp is initialized, and that its messages stay off stderr.
#[derive(Clone, Copy, Debug)]
pub struct Backend(());

impl Backend {
    /// Initializes llama.cpp. May be called any number of times.
    #[must_use]
    pub fn init() -> Self {
        crate::log::install();
        // SAFETY: no preconditions, and initializing twice does nothing. It is never undone: what
        // llama_backend_free releases are tables that other threads may be using.
        unsafe { ggml_sys::llama_backend_init() };
        Self(())
    }
}
