//! Running contexts through the model.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use format::InputId;
use ggml::Type;
use llama::{Context, ContextParams, LlamaError, Model, Observer, Outputs, Token};

use super::CaptureError;
use super::collector::Collector;
use crate::{CalibratedInput, PassageKind};

/// Logits of a batch take at most so many bytes: all tokens are outputs, since the last layer sees no others.
const MAX_LOGIT_BYTES: usize = 128 << 20;

/// Tokens of a batch where the vocabulary is not the limit.
const MAX_BATCH: usize = 512;

/// Tokens of a batch, however large the vocabulary.
const MIN_BATCH: usize = 32;

/// What to collect and how.
#[derive(Clone, Copy)]
pub struct CaptureParams<'a> {
    /// Inputs to collect and their lengths.
    pub inputs: &'a BTreeMap<InputId, usize>,
    /// Largest input whose second moment is formed; longer ones are sampled.
    pub max_moment_dim: usize,
    /// Bytes for the second moments of single experts, all together; beyond, their diagonals are kept.
    pub max_expert_bytes: usize,
    /// Tokens per context, BOS included.
    pub n_ctx: usize,
    /// Tokens to fit to that will be run.
    pub n_fitted: u64,
    /// Held-out tokens that will be run.
    pub n_held_out: u64,
    /// Samples of inputs longer than `max_moment_dim`, at most.
    pub n_samples: u64,
    /// Held-out samples of every input, at most.
    pub n_holdout_samples: u64,
    /// Decides which tokens are sampled.
    pub seed: u64,
    /// Threads, at least 1.
    pub n_threads: usize,
    /// Asked often: whether to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Evaluation of the watched contexts, without `accumulation`.
    pub forward: Duration,
    /// Summing up what was seen.
    pub accumulation: Duration,
    /// Floating point operations of the sums.
    pub accumulation_flops: f64,
}

/// A model being run and watched.
pub struct Capture<'m, 'a> {
    context: Context<'m, Collector<'a>>,
    params: ContextParams,
    model: &'m Model,
    bos: Option<Token>,
    total: Duration,
}

impl<'m, 'a> Capture<'m, 'a> {
    /// Prepares to run `model`.
    ///
    /// # Errors
    /// [`CaptureError::ContextLength`] or [`CaptureError::Llama`].
    pub fn new(model: &'m Model, params: &CaptureParams<'a>) -> Result<Self, CaptureError> {
        let limit = model.n_ctx_train().max(16);
        if !(16..=limit).contains(&params.n_ctx) {
            return Err(CaptureError::ContextLength { n_ctx: params.n_ctx, limit });
        }
        let by_memory = MAX_LOGIT_BYTES / (size_of::<f32>() * model.n_vocab().max(1));
        let n_batch = by_memory.clamp(MIN_BATCH, MAX_BATCH).min(params.n_ctx);
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let context_params = ContextParams {
            n_ctx: small(params.n_ctx),
            n_batch: small(n_batch),
            n_threads: i32::try_from(params.n_threads).unwrap_or(i32::MAX),
            cache_type: Type::F16,
        };
        let context = Context::with_observer(model, context_params, Collector::new(params))?;
        let total = Duration::ZERO;
        Ok(Self { context, params: context_params, model, bos: model.bos(), total })
    }

    /// Runs one context: BOS if the model wants it, then `passage`.
    ///
    /// # Errors
    /// [`CaptureError::Stopped`] if asked to; [`CaptureError::Graph`] or [`CaptureError::NonFinite`] for
    /// models that cannot be calibrated; [`CaptureError::Llama`].
    pub fn run(&mut self, kind: PassageKind, passage: &[Token]) -> Result<(), CaptureError> {
        let tokens = self.with_bos(passage);
        let start = Instant::now();
        self.context.clear();
        for batch in tokens.chunks(self.context.n_batch().min(self.params.n_batch as usize)) {
            self.context.observer_mut().begin(kind, batch.len());
            let decoded = self.context.decode(batch, Outputs::All);
            let collector = self.context.observer_mut();
            if let Some(error) = collector.error.take() {
                return Err(error);
            }
            decoded?;
            collector.end()?;
        }
        self.total += start.elapsed();
        Ok(())
    }

    /// Seconds that the same context takes when nobody watches.
    ///
    /// # Errors
    /// [`CaptureError::Llama`].
    pub fn time_plain(&self, passage: &[Token]) -> Result<Duration, CaptureError> {
        let mut context = Context::new(self.model, self.params)?;
        let tokens = self.with_bos(passage);
        let start = Instant::now();
        decode(&mut context, &tokens)?;
        Ok(start.elapsed())
    }

    fn with_bos(&self, passage: &[Token]) -> Vec<Token> {
        self.bos.into_iter().chain(passage.iter().copied()).collect()
    }

    /// Where the time went so far.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let collector = self.context.observer();
        Timing {
            forward: self.total.saturating_sub(collector.spent),
            accumulation: collector.spent,
            accumulation_flops: collector.flops,
        }
    }

    /// Everything collected.
    #[must_use]
    pub fn finish(mut self) -> BTreeMap<InputId, CalibratedInput> {
        self.context.observer_mut().take()
    }
}

fn decode<O: Observer>(context: &mut Context<'_, O>, tokens: &[Token]) -> Result<(), LlamaError> {
    let n_batch = context.n_batch();
    tokens.chunks(n_batch).try_for_each(|batch| context.decode(batch, Outputs::All))
}
