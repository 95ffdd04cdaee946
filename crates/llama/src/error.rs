//! What can go wrong when a model is loaded or run.

use std::path::PathBuf;

use ggml::gguf::GgufError;

use crate::Token;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// The file is no intact GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// llama.cpp refuses the model.
    #[error("{path}: {reason}", path = path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's message.
        reason: String,
    },
    /// A metadata override that llama.cpp cannot take.
    #[error("metadata override '{key}': {reason}")]
    Override {
        /// The key.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The model has an encoder, or no decoder: it cannot be run as plain text.
    #[error("{path}: only models with a decoder alone can be run", path = path.display())]
    NotDecoder {
        /// The file.
        path: PathBuf,
    },
    /// The text cannot be tokenized.
    #[error("cannot tokenize: {0}")]
    Tokenize(&'static str),
    /// The context cannot be made.
    #[error("cannot make a context: {0}")]
    Context(String),
    /// More tokens than fit, or none.
    #[error("{got} tokens, but 1 to {limit} fit ({what})")]
    TooManyTokens {
        /// Number of tokens given.
        got: usize,
        /// Number that fits.
        limit: usize,
        /// What limits them.
        what: &'static str,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} is not in the vocabulary of {n_vocab}")]
    UnknownToken {
        /// The token.
        token: Token,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// The evaluation failed.
    #[error("evaluation failed: {0}")]
    Decode(String),
    /// A part of the model cannot be run by itself.
    #[error("cannot run a part of the model: {0}")]
    Part(String),
    /// The observer asked to stop.
    #[error("evaluation was stopped")]
    Stopped,
    /// There are no logits for a token, because it was not marked as an output.
    #[error("there are no logits for token {0} of the batch")]
    NoLogits(usize),
    /// The data of a node cannot be read as rows of F32.
    #[error("'{name}': {reason}")]
    Data {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}
