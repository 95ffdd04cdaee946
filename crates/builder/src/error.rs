//! Errors of a build: each is one line that names a file, a tensor or a flag, and the way out.
//!
//! What an error says holds its cause, so that the cause is no `source()`: who prints a whole chain would print it twice.

use std::path::{Path, PathBuf};

use format::CodecError;

/// Why a build cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What any program can meet.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// A file that cannot be looked at.
    #[error(transparent)]
    Inspect(inspect::Error),
    /// A GGUF file that cannot be written.
    #[error("{}: cannot write: {cause}{}", path.display(), write_hint(cause))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: ggml::gguf::WriteError,
    },
    /// A model that cannot be coded at all.
    #[error("{}: {reason}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// Why, with the tensor or key, and the way out.
        reason: String,
    },
    /// An importance matrix that cannot be read or does not fit the model.
    #[error("--imatrix: {0}")]
    Imatrix(ggml::imatrix::ImatrixError),
    /// An importance matrix that leaves nothing to work with.
    #[error("--imatrix {}: {reason}", path.display())]
    ImatrixUse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// A calibration that cannot be read or does not fit the model.
    #[error("--calib: {0}")]
    Calibration(calibration::CalibrationError),
    /// A calibration that leaves nothing to work with.
    #[error("--calib {}: {reason}", path.display())]
    CalibrationUse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// A calibration that cannot be made.
    #[error("{0}")]
    Calibrating(String),
    /// A codec refused a tensor.
    #[error("{tensor}: {cause}")]
    Codec {
        /// Full name of the dense weight.
        tensor: String,
        /// The codec's reason.
        cause: CodecError,
    },
    /// Something is in the way of a new build.
    #[error("{}: already exists: --resume goes on with it, --force replaces it", path.display())]
    Exists {
        /// The file or work folder.
        path: PathBuf,
    },
    /// `--resume` with something that the earlier run had not.
    #[error(
        "--resume: {name} is {given}, but {} was made with {recorded}: repeat that value, or start anew with --force",
        path.display()
    )]
    Parameter {
        /// The output or work folder that would be continued.
        path: PathBuf,
        /// Flag or property that differs.
        name: String,
        /// Value of the earlier run.
        recorded: String,
        /// Value of this run.
        given: String,
    },
    /// `--resume` with another input than the earlier run had.
    #[error(
        "--resume: {} was made from another input, with the SHA-256 {recorded}: give that one with -i, or start anew with --force",
        path.display()
    )]
    OtherInput {
        /// The output or work folder that would be continued.
        path: PathBuf,
        /// Hash of the input of the earlier run.
        recorded: String,
    },
    /// `--resume` with something that no build has written.
    #[error("--resume: {}: {reason}", path.display())]
    Resume {
        /// The output or work folder.
        path: PathBuf,
        /// Why it cannot be continued, and the way out.
        reason: String,
    },
    /// Another process is building the same output.
    #[error("{}: another build is writing here: wait for it or choose another -o", path.display())]
    Locked {
        /// The work folder.
        path: PathBuf,
    },
    /// The input is not the file any more that it was at the start.
    #[error(
        "{}: changed while it was being read: the finished tensors do not fit it any more; run again with --force once the file is complete",
        path.display()
    )]
    SourceChanged {
        /// The input.
        path: PathBuf,
    },
    /// Something went wrong outside, and what was finished is not lost.
    #[error(
        "{error}; {finished} finished tensors are kept in {}: the same command with --resume goes on",
        path.display()
    )]
    Kept {
        /// What went wrong.
        error: Box<Error>,
        /// Tensors that need not be done again.
        finished: usize,
        /// The work folder.
        path: PathBuf,
    },
    /// The user or the system asked the program to stop before anything was finished.
    #[error("interrupted before a tensor was finished: run the same command again")]
    Stopped,
    /// The user or the system asked the program to stop.
    #[error(
        "interrupted: {finished} of {total} tensors are finished and kept in {}: the same command with --resume goes on",
        path.display()
    )]
    Interrupted {
        /// The work folder.
        path: PathBuf,
        /// Tensors that need not be done again.
        finished: usize,
        /// Tensors of the plan.
        total: usize,
    },
}

impl From<ggml::imatrix::ImatrixError> for Error {
    fn from(error: ggml::imatrix::ImatrixError) -> Self {
        Self::Imatrix(error)
    }
}

impl From<calibration::CalibrationError> for Error {
    fn from(error: calibration::CalibrationError) -> Self {
        Self::Calibration(error)
    }
}

impl From<inspect::Error> for Error {
    fn from(error: inspect::Error) -> Self {
        match error {
            inspect::Error::Program(error) => Self::Program(error),
            other => Self::Inspect(other),
        }
    }
}

impl From<ggml::gguf::GgufError> for Error {
    fn from(error: ggml::gguf::GgufError) -> Self {
        inspect::Error::from(error).into()
    }
}

impl Error {
    /// What the flag `flag` asks for cannot be done; `reason` tells why, and the way out.
    #[must_use]
    pub fn flag(flag: &'static str, reason: impl Into<String>) -> Self {
        program::Error::Flag { flag, reason: reason.into() }.into()
    }

    /// Whether someone asked the program to stop.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped | Self::Interrupted { .. })
    }

    /// [`Self::Resume`] for a tuned output at `path` that cannot grow.
    pub(crate) fn tuned_as_a_whole(path: &Path) -> Self {
        let reason =
            "was tuned as a whole (--tune), no tensor can be added: start anew with --force";
        Self::Resume { path: path.to_owned(), reason: reason.to_owned() }
    }

    /// [`Self::Calibrating`] for a model that nothing can be seen of.
    #[cfg(any(feature = "calibrate", feature = "sections"))]
    pub(crate) fn cannot_run(error: &llama::LlamaError) -> Self {
        Self::Calibrating(format!("{error}: --no-calib fits to the weights alone"))
    }

    /// [`Self::SourceChanged`] for `path`.
    #[must_use]
    pub fn changed(path: &Path) -> Self {
        Self::SourceChanged { path: path.to_owned() }
    }
}

fn write_hint(error: &ggml::gguf::WriteError) -> &'static str {
    match error {
        ggml::gguf::WriteError::Io(e) => program::hint(e),
        _ => "",
    }
}

/// From now on a request to stop is heard, which `tool` says to be `doing` then, and one line says so when someone cuts
/// `input`, which is mapped, short.
pub(crate) fn watch(tool: &str, doing: &str, input: &Path) -> Result<program::Interrupt, Error> {
    let interrupt = program::Interrupt::install(format!("{tool}: {doing}"));
    let interrupt = interrupt.map_err(io(input, "watch for signals"))?;
    program::explain_bus_errors(tool, &Error::changed(input))
        .map_err(io(input, "watch for signals"))?;
    Ok(interrupt)
}

/// Turns an I/O error into one that names `path`.
pub(crate) fn io<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |cause| program::io(path, action)(cause).into()
}
