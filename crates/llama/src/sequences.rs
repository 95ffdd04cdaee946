//! Many texts evaluated side by side, one token of each at a time.

use crate::{Context, ContextParams, LlamaError, Model, Token};
use ggml_sys as sys;

/// Equally long sequences of tokens. A step takes little longer than one of a single sequence, because every weight is read
/// once for all of them.
#[derive(Debug)]
pub struct Sequences<'m> {
    context: Context<'m>,
    limit: usize,
}

impl<'m> Sequences<'m> {
    /// Room for `n` sequences of `params.n_ctx` positions each. Logits do not depend on the number of threads: flash
    /// attention, which sums up in parts for each of them, is off.
    ///
    /// # Errors
    /// As [`Context::with_observer`].
    pub fn new(model: &'m Model, params: ContextParams, n: u32) -> Result<Self, LlamaError> {
        let too_large = || LlamaError::Context(format!("{n} sequences do not fit in memory"));
        let n_ctx = params.n_ctx.checked_mul(n).ok_or_else(too_large)?;
        let params = ContextParams { n_batch: params.n_batch.max(n), ..params };
        let context = Context::open(model, params, (), |raw| {
            raw.n_ctx = n_ctx;
            raw.n_seq_max = n;
            raw.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        })?;
        Ok(Self { context, limit: n as usize })
    }

    /// Appends `tokens[i]` to sequence `i`. The first step after [`Self::clear`] says how many sequences there are.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn step(&mut self, tokens: &[Token]) -> Result<(), LlamaError> {
        if tokens.len() > self.limit {
            let (got, limit) = (tokens.len(), self.limit);
            return Err(LlamaError::TooManyTokens { got, limit, what: "number of sequences" });
        }
        self.context.step(tokens)
    }

    /// What sequence `i` says about its next token, one logit per token of the vocabulary.
    ///
    /// # Errors
    /// [`LlamaError::NoLogits`] if the last step had no such sequence.
    pub fn logits(&self, i: usize) -> Result<&[f32], LlamaError> {
        self.context.logits(i)
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.context.clear();
    }
}
