//! What can go wrong, each in one line.

use std::path::PathBuf;

/// Why data, training or export failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read, or its folder not made.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// A line of a data file is not what the program writes.
    #[error("{}, line {line}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint that does not belong to these arguments, or is damaged.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// A model that cannot be.
    #[error("{0}")]
    Model(String),
    /// The tensor library failed.
    #[cfg(feature = "tiny")]
    #[error("candle: {0}")]
    Tensor(candle_core::Error),
    /// The GGUF cannot be written.
    #[error("{}: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: ggml::gguf::WriteError,
    },
}

#[cfg(feature = "tiny")]
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl Error {
    /// A closure that adds `path` to an I/O error.
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_owned(), cause }
    }
}
