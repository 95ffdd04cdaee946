//! Why a model cannot be tuned.

use std::path::PathBuf;

/// Why a model cannot be tuned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// The model is of another architecture, or uses a part of it that is not known here.
    #[error("'{path}' {reason}: only plain models of the llama architecture can be tuned")]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// What is not known.
        reason: String,
    },
    /// The model file cannot be read.
    #[error(transparent)]
    Gguf(#[from] ggml::gguf::GgufError),
    /// A product could not be computed: shapes that do not fit.
    #[error("the model cannot be computed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The loss left the range of numbers.
    #[error("the loss is not finite at step {step}: a smaller learning rate may help")]
    Diverged {
        /// The step, from 1.
        step: usize,
    },
    /// Asked to stop.
    #[error("stopped")]
    Stopped,
}
