//! Why a model cannot be run or tuned.

use std::path::PathBuf;

use crate::family::families;

/// Why a model cannot be run or tuned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// The model is of another architecture, or uses a part of it that is not known here.
    #[error(
        "'{path}' {reason}: gradients are known for dense models of {}",
        families().collect::<Vec<_>>().join(", ")
    )]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// What is not known.
        reason: String,
    },
    /// The FFN computes something that is not known here.
    #[error("'{path}': {reason}")]
    Form {
        /// The model.
        path: PathBuf,
        /// What is not known.
        reason: String,
    },
    /// The model file cannot be read.
    #[error(transparent)]
    Gguf(#[from] ggml::gguf::GgufError),
    /// llama.cpp cannot run it, or not in parts.
    #[error(transparent)]
    Llama(#[from] llama::LlamaError),
    /// The model computes values that are no numbers.
    #[error("the inputs of {input} are not finite: the model overflows on this text")]
    NonFinite {
        /// Which.
        input: format::InputId,
    },
    /// The hidden states cannot be kept.
    #[error("cannot keep hidden states: {0}")]
    Io(#[from] std::io::Error),
    /// A token that the model does not have.
    #[error("token {token} is not in the model's vocabulary of {n_vocab}")]
    Token {
        /// The token.
        token: i32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A product could not be computed: shapes that do not fit.
    #[error("the model cannot be computed: {0}")]
    Compute(candle_core::Error),
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

impl From<candle_core::Error> for TuningError {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error)
    }
}

pub(crate) fn stop_if(mut stop: impl FnMut() -> bool) -> Result<(), TuningError> {
    if stop() { Err(TuningError::Stopped) } else { Ok(()) }
}
