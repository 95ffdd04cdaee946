//! What can go wrong, each in one line.

use std::path::PathBuf;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A GGUF that cannot be read.
    #[error(transparent)]
    Gguf(#[from] ggml::gguf::GgufError),
    /// llama.cpp refuses.
    #[error(transparent)]
    Llama(#[from] llama::LlamaError),
    /// Examples that cannot be read.
    #[error(transparent)]
    Examples(#[from] crate::tiny::Error),
    /// A file that is not what is needed here.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// Nothing to measure on.
    #[error("nothing to measure on: give --examples, or --text and --calib-text")]
    NoMaterial,
}
