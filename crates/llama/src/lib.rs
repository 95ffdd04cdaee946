//! Running models through llama.cpp, and looking at what its graph computes.
//!
//! Enough to read the inputs of weights during evaluation: load, tokenize, decode on the CPU. [`Layers`] runs parts of a
//! model.

mod architecture;
mod context;
mod error;
mod layers;
mod model;
mod node;
mod sequences;

use std::sync::Once;

use ggml::log;
// The patched libllama calls the run-time hook; linking it here spares every program to remember it.
use statecells_hook as _;

pub use architecture::knows_architecture;
pub use context::{Context, ContextParams, Outputs};
pub use error::LlamaError;
pub use layers::{Carried, Layers, Part, Point, StandIn};
pub use model::{Model, ModelParams, Override};
pub use node::{Computed, Node, Observer};
pub use sequences::Sequences;

/// A token number of a model's vocabulary.
pub type Token = ggml_sys::llama_token;

/// Proof that llama.cpp is initialized, and that its messages stay off stderr.
#[derive(Clone, Copy, Debug)]
pub struct Backend(());

impl Backend {
    /// Initializes llama.cpp. May be called any number of times.
    #[must_use]
    pub fn init() -> Self {
        static INITIALIZED: Once = Once::new();
        // SAFETY: `receive` may be called from any thread and needs no user data; initializing has no
        // preconditions. It is never undone: what llama_backend_free releases are tables that other
        // threads may be using.
        INITIALIZED.call_once(|| unsafe {
            ggml_sys::llama_log_set(Some(log::receive), std::ptr::null_mut());
            ggml_sys::llama_backend_init();
        });
        Self(())
    }
}

/// `ln sum exp` of the logits of one position: a logit less this is the logarithm of a probability.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let peak = logits.iter().fold(f32::MIN, |m, &v| m.max(v));
    let sum: f64 = logits.iter().map(|&v| f64::from(v - peak).exp()).sum();
    f64::from(peak) + sum.ln()
}
