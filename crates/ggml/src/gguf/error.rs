//! What can be wrong with a GGUF file or with what is to be written into one.

use std::io;
use std::path::PathBuf;

use crate::{Type, TypeError};

/// Why a GGUF file cannot be read. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("{path}: {cause}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file is something else, or a GGUF that others made for themselves.
    #[error("{path}: {what}: {instead}", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to give in its place.
        instead: String,
    },
    /// The file is a damaged GGUF.
    #[error("{path}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A part of a model in several files, or a part that is missing; the reason names the way out.
    #[error("{path}: {reason}", path = path.display())]
    Parts {
        /// The part.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file has no tensor of that name.
    #[error("{path}: no tensor '{name}'", path = path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor asked for.
        name: String,
    },
    /// A metadata key is missing.
    #[error("{path}: no metadata key '{key}'", path = path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
    },
    /// A metadata value has another type than asked for.
    #[error("{path}: metadata key '{key}' is {found}, expected {expected}", path = path.display())]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// Type in the file.
        found: &'static str,
        /// Type asked for.
        expected: &'static str,
    },
    /// A tensor's type cannot do what was asked.
    #[error("{path}: tensor '{name}': {cause}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        cause: TypeError,
    },
}

/// Why a GGUF cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A metadata key or string that the format cannot hold.
    #[error("metadata key '{key}': {reason}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor name that is too long, empty, or taken.
    #[error("tensor '{name}': {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Dimensions that the type or the format cannot hold.
    #[error("tensor '{name}': {ty} cannot have the dimensions {dims:?}")]
    Dims {
        /// The tensor.
        name: String,
        /// Its type.
        ty: Type,
        /// Dimensions, innermost first.
        dims: Vec<usize>,
    },
    /// The data of a tensor turned out shorter or longer than announced.
    #[error("tensor '{name}': {written} bytes were written, its shape and type need {expected}")]
    DataSize {
        /// The tensor.
        name: String,
        /// Bytes written; at least so many if more than expected.
        written: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
