//! What can go wrong with calibration files.

use std::path::PathBuf;

use format::InputId;

/// Why a calibration cannot be read, used or written. Each message is one line with the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The file is no intact GGUF.
    #[error(transparent)]
    Gguf(#[from] ggml::gguf::GgufError),
    /// The file is no intact calibration.
    #[error("{}: {reason}: make it again with statecells-calib", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file was made for another model.
    #[error(
        "{}: was made for another model ({what} {recorded}, this one has {given}): run statecells-calib on this model",
        path.display()
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The property that differs.
        what: &'static str,
        /// Its value in the file.
        recorded: String,
        /// Its value in the model at hand.
        given: String,
    },
    /// The file does not cover a layer.
    #[error(
        "{}: holds nothing about {input}, the input of {}: run statecells-calib for its layer too",
        path.display(),
        readers(*input)
    )]
    NoInput {
        /// The file.
        path: PathBuf,
        /// The input that was asked for.
        input: InputId,
    },
    /// The file holds the text alone.
    #[error(
        "{}: holds tokens but no activations, with which only --sequential can do, and not with a budget: run \
         statecells-calib without --tokens-only",
        path.display()
    )]
    TokensOnly {
        /// The file.
        path: PathBuf,
    },
    /// The sums over the text cannot be kept.
    #[error("{input}: {reason}: the model's activations are damaged or beyond F32")]
    Values {
        /// The input, as its tensors are named.
        input: String,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] ggml::gguf::WriteError),
}

/// `blk.1.ffn_gate and blk.1.ffn_up`.
fn readers(input: InputId) -> String {
    input.readers().map(|matrix| matrix.stem()).collect::<Vec<_>>().join(" and ")
}
