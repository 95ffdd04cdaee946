//! Errors of looking at a file: each is one line that names a file or a flag, and the way out.

use std::path::PathBuf;

use ggml::gguf::GgufError;

/// Why a file cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What any program can meet.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// A GGUF file that cannot be read.
    #[error(transparent)]
    Gguf(GgufError),
    /// A model whose metadata contradict each other.
    #[error("{}: {reason}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// Why, with the key.
        reason: String,
    },
    /// A type that cannot hold a row of the KV cache.
    #[error("{flag} {ty}: rows of {n} entries are no multiple of the {} in a block: use f16", ty.block_size())]
    KvType {
        /// The flag.
        flag: &'static str,
        /// The type.
        ty: ggml::Type,
        /// Entries per token and layer.
        n: usize,
    },
}

impl From<GgufError> for Error {
    /// A file that the system refuses gets the way out that every other such file gets.
    fn from(error: GgufError) -> Self {
        match error {
            GgufError::Open { path, cause } => program::io(&path, "read")(cause).into(),
            other => Self::Gguf(other),
        }
    }
}
