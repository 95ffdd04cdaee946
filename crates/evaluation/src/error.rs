//! What can go wrong, each as one line with the way out.

use std::io;
use std::path::{Path, PathBuf};

/// Why an evaluation, or one of its measurements, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What any program can meet: reading or writing failed, mostly.
    #[error(transparent)]
    Common(#[from] program::Error),
    /// A file cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// An importance matrix cannot be used.
    #[error(transparent)]
    Imatrix(#[from] ggml::imatrix::ImatrixError),
    /// A program could not be run or failed.
    #[error("{program}: {reason}")]
    Program {
        /// Name of the program.
        program: String,
        /// What happened, and where to read more.
        reason: String,
    },
    /// What a program wrote was not understood.
    #[error("{program}: {reason} in its output")]
    Output {
        /// Name of the program.
        program: &'static str,
        /// What is missing or wrong.
        reason: String,
    },
    /// A file cannot be looked at.
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    /// llama.cpp cannot read a model's vocabulary.
    #[error(transparent)]
    Llama(#[from] llama::LlamaError),
    /// A calibration cannot be read.
    #[error(transparent)]
    Calibration(#[from] calibration::CalibrationError),
    /// The user asked to stop.
    #[error("stopped: finished measurements are kept, run the same command with --resume")]
    Stopped,
}

impl From<ggml::gguf::GgufError> for Error {
    fn from(error: ggml::gguf::GgufError) -> Self {
        inspect::Error::from(error).into()
    }
}

impl Error {
    pub(crate) fn input(path: &Path, reason: impl Into<String>) -> Self {
        Self::Input { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn program(program: &str, reason: impl Into<String>) -> Self {
        Self::Program { program: program.to_owned(), reason: reason.into() }
    }
}

/// For `map_err`: an I/O error with its path.
pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| program::io(path, action)(cause).into()
}
