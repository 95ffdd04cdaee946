//! Errors that any program can meet: each is one line that names a file or a flag, and the way out.
//!
//! What an error says holds its cause, so that the cause is no `source()`: who prints a whole chain would print it twice.

use std::path::{Path, PathBuf};

/// Why a program cannot start or go on.
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
    /// A flag asks for what cannot be done.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Why not, and the way out.
        reason: String,
    },
    /// A layer that the model does not have.
    #[error("--layers {list}: the model has {n_layers} layers, numbered 0 to {}", n_layers.saturating_sub(1))]
    Layers {
        /// The list as typed.
        list: String,
        /// Layers of the model.
        n_layers: usize,
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
}

/// Turns an I/O error into [`Error::Io`].
pub fn io<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> Error + Clone + 'a {
    move |cause| Error::Io { path: path.to_owned(), action, cause }
}

/// The way out for the errors of the system that users meet.
#[must_use]
pub fn hint(error: &std::io::Error) -> &'static str {
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
