//! Why the hook refuses something.

use format::{CodecError, ExpertsError, Uncodable};
use statecells_kernels::KernelError;

/// Why the hook refuses a matrix or a call; one line, without the tensor's name, which the host adds.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum HookError {
    /// The file's sidecars are not what the format says.
    #[error("sidecar '{suffix}': {reason}: the file is damaged or was made by another version")]
    Sidecar {
        /// Last part of the tensor's name.
        suffix: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The scheme is unknown here.
    #[error("scheme '{0}' is unknown to this version: update llama.cpp's StateCells library")]
    Scheme(String),
    /// Two sidecars do not agree, or their content is out of range.
    #[error("{0}: the file is damaged or was made by another version")]
    Kernel(#[from] KernelError),
    /// The model has no place for a coded weight there.
    #[error("{0}")]
    Uncodable(#[from] Uncodable),
    /// The model has experts of a shape that cannot be coded.
    #[error("{0}")]
    Experts(ExpertsError),
    /// The scheme has no products with experts.
    #[error("scheme '{0}' cannot code experts: the file is damaged or was made by another version")]
    NoExperts(&'static str),
    /// An environment variable asks for what this machine has not.
    #[error("{0}")]
    Environment(String),
    /// The host broke the contract of `statecells.h`.
    #[error("statecells: {0}")]
    Call(&'static str),
    /// A defect of this library.
    #[error("statecells: internal error (panic caught)")]
    Panic,
}

impl HookError {
    /// An error about one sidecar.
    pub fn sidecar(suffix: &'static str, reason: impl Into<String>) -> Self {
        Self::Sidecar { suffix, reason: reason.into() }
    }

    /// An error about a scheme that this version does not know; of a long name only the beginning.
    pub fn unknown_scheme(scheme: &str) -> Self {
        Self::Scheme(scheme.chars().take(40).collect())
    }

    /// What a codec says about sidecars.
    pub fn from_codec(error: CodecError) -> Self {
        match error {
            CodecError::Sidecar { suffix, reason } => Self::Sidecar { suffix, reason },
            other => Self::Sidecar { suffix: "base", reason: other.to_string() },
        }
    }
}
