//! What can go wrong while inputs are collected.

use llama::LlamaError;

use super::contexts::MIN_CONTEXTS;

/// Why inputs cannot be collected. Each message is one line with the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// llama.cpp cannot run the model or tokenize the text.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// Too little text for any use.
    #[error(
        "the text has {n_tokens} tokens, at least {needed} are needed ({MIN_CONTEXTS} contexts of {n_ctx}): give more text with -f"
    )]
    TooLittleText {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens needed.
        needed: usize,
        /// Tokens per context.
        n_ctx: usize,
    },
    /// Fewer tokens asked for than any use needs.
    #[error("--tokens {tokens}: at least {needed} are needed ({MIN_CONTEXTS} contexts of {n_ctx})")]
    TooFewTokens {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
        /// Tokens per context.
        n_ctx: usize,
    },
    /// Contexts that the model cannot have.
    #[error("--ctx {n_ctx}: choose 16 to {limit}, what the model was trained for")]
    ContextLength {
        /// Tokens per context asked for.
        n_ctx: usize,
        /// What the model was trained for.
        limit: usize,
    },
    /// A conversation that cannot be read.
    #[error(
        "line {line}: {reason}: give one object {{\"messages\": [{{\"role\", \"content\"}}, ...]}} per line"
    )]
    Chat {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A chat template that this program cannot apply.
    #[error(
        "the model's chat template is none of ChatML, Llama 3 and Mistral: render the conversations to plain text yourself"
    )]
    ChatTemplate,
    /// The model's graph does not multiply the weight with its input as expected.
    #[error("{input}: {reason}: models of this architecture cannot be calibrated")]
    Graph {
        /// The input, as its tensors are named.
        input: String,
        /// What is wrong.
        reason: String,
    },
    /// An input that is not finite.
    #[error("{input}: the model computes NaN or infinity: the model file is damaged")]
    NonFinite {
        /// The input, as its tensors are named.
        input: String,
    },
    /// The model predicts no next token.
    #[error("the model's predictions are NaN or infinity: the model file is damaged")]
    Predictions,
    /// The model is one that makes embeddings.
    #[error("the model predicts no next token, so that it cannot write a text: give one with -f")]
    NoPredictions,
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}
