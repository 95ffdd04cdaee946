//! Errors of a build: each is one line that names a file, a tensor or a flag, and the way out.
//!
//! What an error says holds its cause, so that the cause is no `source()`: who prints a whole chain would print it twice.

use std::path::{Path, PathBuf};

use format::CodecError;

/// Why a build cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: cannot {action}: {cause}{}", path.display(), hint(cause))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `read`, `write`, ...
        action: &'static str,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// A GGUF file that cannot be read.
    #[error(transparent)]
    Gguf(ggml::gguf::GgufError),
    /// A GGUF file that cannot be written.
    #[error("{}: cannot write: {cause}{}", path.display(), write_hint(cause))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: ggml::gguf::WriteError,
    },
    /// A layer that the model does not have.
    #[error("--layers {list}: the model has {n_layers} layers, numbered 0 to {}", n_layers.saturating_sub(1))]
    Layers {
        /// The list as typed.
        list: String,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A selection that names no tensor of the model.
    #[error("{flag}: {reason}")]
    Selection {
        /// The flag.
        flag: &'static str,
        /// Why nothing is left.
        reason: String,
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
    /// A codec refused a tensor.
    #[error("{tensor}: {cause}")]
    Codec {
        /// Full name of the dense weight.
        tensor: String,
        /// The codec's reason.
        cause: CodecError,
    },
    /// A step of the method cannot be done with this model or calibration.
    #[error("{flag}: {reason}")]
    Method {
        /// The flag that asks for it.
        flag: &'static str,
        /// Why not, and the way out.
        reason: String,
    },
    /// Two flags name the same file.
    #[error("{first} and {second} are the same file ({}): choose another {second}", path.display())]
    SameFile {
        /// The flag of the file to keep.
        first: &'static str,
        /// The flag of the file that would overwrite it.
        second: &'static str,
        /// The file.
        path: PathBuf,
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
    /// Less room than the output will need.
    #[error(
        "{}: needs about {needed_bytes} bytes, but only {free_bytes} are free: make room or choose another -o",
        path.display()
    )]
    NoRoom {
        /// Folder of the output.
        path: PathBuf,
        /// Bytes that will be written.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// The file system or the shell lets no file grow as large as the output will be.
    #[error(
        "{}: needs a file of about {needed_bytes} bytes, but {limit} ends them at {limit_bytes}: {way_out}",
        path.display()
    )]
    FileLimit {
        /// Folder of the output.
        path: PathBuf,
        /// Bytes of the largest file that will be written.
        needed_bytes: u64,
        /// What limits it.
        limit: &'static str,
        /// Bytes that a file may have.
        limit_bytes: u64,
        /// What to do.
        way_out: &'static str,
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

impl From<ggml::gguf::GgufError> for Error {
    /// A file that the system refuses gets the way out that every other such file gets.
    fn from(error: ggml::gguf::GgufError) -> Self {
        match error {
            ggml::gguf::GgufError::Open { path, cause } => Self::Io { path, action: "read", cause },
            other => Self::Gguf(other),
        }
    }
}

impl Error {
    /// [`Self::Resume`] for a tuned output at `path` that cannot grow.
    pub(crate) fn tuned_as_a_whole(path: &Path) -> Self {
        let reason =
            "was tuned as a whole (--tune), no tensor can be added: start anew with --force";
        Self::Resume { path: path.to_owned(), reason: reason.to_owned() }
    }

    /// [`Self::SourceChanged`] for `path`.
    #[must_use]
    pub fn changed(path: &Path) -> Self {
        Self::SourceChanged { path: path.to_owned() }
    }
}

/// The way out for the errors of the system that users meet.
fn hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => ": check the path",
        Kind::PermissionDenied => ": check the permissions or choose another path",
        Kind::ReadOnlyFilesystem => ": choose a path that can be written",
        Kind::StorageFull | Kind::QuotaExceeded => ": make room and run again",
        Kind::FileTooLarge => {
            ": the file system takes no file as large (FAT ends at 4 GiB), or a limit is set (ulimit -f): choose \
             another file system, or lift the limit"
        }
        Kind::InvalidFilename => ": choose a shorter name",
        Kind::IsADirectory => ": name a file, not a folder",
        _ => "",
    }
}

fn write_hint(error: &ggml::gguf::WriteError) -> &'static str {
    match error {
        ggml::gguf::WriteError::Io(e) => hint(e),
        _ => "",
    }
}

/// Turns an I/O error into [`Error::Io`].
pub(crate) fn io<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |cause| Error::Io { path: path.to_owned(), action, cause }
}
