//! Evaluation of tokens.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use ggml::{Type, log};
use ggml_sys as sys;

use crate::{Computed, LlamaError, Model, Node, Observer, Token};

/// Sizes of a context.
#[derive(Clone, Copy, Debug)]
pub struct ContextParams {
    /// Number of positions.
    pub n_ctx: u32,
    /// Largest number of tokens in one call of [`Context::decode`]; they go through the graph at once.
    pub n_batch: u32,
    /// Number of threads.
    pub n_threads: i32,
    /// Type of the cached keys and values; llama.cpp's default is F16. With F32 nothing in the attention is
    /// rounded: flash attention, which would round to F16, is off.
    pub cache_type: Type,
}

/// Which tokens of a batch get logits. The last layer is computed for these only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// All tokens: needed where observers want the inputs of the last layer for all of them.
    All,
    /// The last token.
    Last,
}

/// One sequence of tokens being evaluated by a model, watched by an observer.
#[derive(Debug)]
pub struct Context<'m, O = ()> {
    raw: NonNull<sys::llama_context>,
    /// From `Box::into_raw`; llama.cpp keeps the same pointer, and uses it only inside of `decode`.
    watch: NonNull<Watch<O>>,
    model: &'m Model,
    n_past: usize,
    batch: Batch,
}

/// The observer, and why it stopped the evaluation.
#[derive(Debug)]
struct Watch<O> {
    observer: O,
    stopped: bool,
    /// Ended early, and nothing is wrong.
    ended: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// The arrays behind a `llama_batch`, all of the same length.
#[derive(Debug, Default)]
struct Batch {
    tokens: Vec<Token>,
    positions: Vec<sys::llama_pos>,
    n_sequences: Vec<i32>,
    /// Which sequence each token belongs to.
    ids: Vec<sys::llama_seq_id>,
    /// Points to `ids`.
    sequences: Vec<*mut sys::llama_seq_id>,
    outputs: Vec<i8>,
}

impl<O> Drop for Context<'_, O> {
    fn drop(&mut self) {
        // SAFETY: both pointers are owned by this value and freed only here; the context goes first, so
        // nothing uses the observer afterwards.
        unsafe {
            sys::llama_free(self.raw.as_ptr());
            drop(Box::from_raw(self.watch.as_ptr()));
        }
    }
}

impl<'m> Context<'m> {
    /// A context that nobody watches.
    ///
    /// # Errors
    /// As [`Context::with_observer`].
    pub fn new(model: &'m Model, params: ContextParams) -> Result<Self, LlamaError> {
        Self::with_observer(model, params, ())
    }
}

impl<'m, O: Observer> Context<'m, O> {
    /// A context whose evaluations `observer` watches.
    ///
    /// # Errors
    /// [`LlamaError::Context`] with llama.cpp's message.
    pub fn with_observer(
        model: &'m Model,
        params: ContextParams,
        observer: O,
    ) -> Result<Self, LlamaError> {
        Self::open(model, params, observer, |_| ())
    }

    /// [`Self::with_observer`] with parameters that `change` has changed.
    pub(crate) fn open(
        model: &'m Model,
        params: ContextParams,
        observer: O,
        change: impl FnOnce(&mut sys::llama_context_params),
    ) -> Result<Self, LlamaError> {
        if params.n_ctx == 0 || params.n_batch == 0 || params.n_threads <= 0 {
            return Err(LlamaError::Context("sizes and threads must be positive".to_owned()));
        }
        let watch = Box::new(Watch { observer, stopped: false, ended: false, panic: None });
        let watch = NonNull::from(Box::leak(watch));
        let mut raw_params = raw_params::<O>(params, watch);
        change(&mut raw_params);
        // SAFETY: the model is loaded and outlives the context; the observer's pointer stays valid until
        // the context is freed.
        let (raw, message) =
            log::capture(|| unsafe { sys::llama_init_from_model(model.as_ptr(), raw_params) });
        let Some(raw) = NonNull::new(raw) else {
            // SAFETY: there is no context that could use the pointer.
            drop(unsafe { Box::from_raw(watch.as_ptr()) });
            return Err(LlamaError::Context(message.unwrap_or_else(|| "out of memory".to_owned())));
        };
        Ok(Self { raw, watch, model, n_past: 0, batch: Batch::default() })
    }

    /// Appends `tokens` to the sequence and evaluates them.
    ///
    /// # Errors
    /// [`LlamaError::TooManyTokens`], [`LlamaError::UnknownToken`], [`LlamaError::Stopped`] or
    /// [`LlamaError::Decode`]; after the last two, [`Self::clear`] the context.
    ///
    /// # Panics
    /// With the observer's panic, once llama.cpp has returned.
    pub fn decode(&mut self, tokens: &[Token], outputs: Outputs) -> Result<(), LlamaError> {
        self.decode_with(tokens, outputs, |context, batch| {
            // SAFETY: the context is valid, and the arrays of the batch live during the call (`decode_with`).
            unsafe { sys::llama_decode(context, batch) }
        })
    }

    /// [`Self::decode`] by `decode`, which gets a valid context and a batch whose arrays have as many entries as it says
    /// and live during the call; counts, tokens and positions were checked.
    pub(crate) fn decode_with(
        &mut self,
        tokens: &[Token],
        outputs: Outputs,
        decode: impl FnOnce(*mut sys::llama_context, sys::llama_batch) -> i32,
    ) -> Result<(), LlamaError> {
        self.check_tokens(tokens, tokens.len())?;
        let batch = self.batch.go_on(tokens, self.n_past, outputs);
        self.evaluate(batch, tokens.len(), decode)
    }

    /// Appends one token each to the sequences 0 up to `tokens.len()`, all of which are equally long, and evaluates them.
    /// Counts were not checked against the number of sequences: the context has that many.
    pub(crate) fn step(&mut self, tokens: &[Token]) -> Result<(), LlamaError> {
        self.check_tokens(tokens, 1)?;
        let batch = self.batch.side_by_side(tokens, self.n_past);
        self.evaluate(batch, 1, |context, batch| {
            // SAFETY: the context is valid, and the arrays of the batch live during the call.
            unsafe { sys::llama_decode(context, batch) }
        })
    }

    /// Evaluates `batch`, by which sequences grow by `n` tokens.
    fn evaluate(
        &mut self,
        batch: sys::llama_batch,
        n: usize,
        decode: impl FnOnce(*mut sys::llama_context, sys::llama_batch) -> i32,
    ) -> Result<(), LlamaError> {
        let result = self.run(batch, decode);
        match result {
            Ok(()) => self.n_past += n,
            Err(_) => self.batch.outputs.clear(), // there are no logits
        }
        result
    }

    fn run(
        &mut self,
        batch: sys::llama_batch,
        decode: impl FnOnce(*mut sys::llama_context, sys::llama_batch) -> i32,
    ) -> Result<(), LlamaError> {
        let raw = self.raw.as_ptr();
        let (status, message) = log::capture(|| decode(raw, batch));
        // SAFETY: llama.cpp uses the pointer only during the call above.
        let watch = unsafe { self.watch.as_mut() };
        if let Some(panic) = watch.panic.take() {
            self.batch.outputs.clear();
            resume_unwind(panic);
        }
        if std::mem::take(&mut watch.stopped) {
            return Err(LlamaError::Stopped);
        }
        if std::mem::take(&mut watch.ended) {
            self.batch.outputs.clear(); // there are no logits
        }
        let unnamed = || format!("llama_decode returned {status}");
        match status {
            0 => Ok(()),
            _ => Err(LlamaError::Decode(message.unwrap_or_else(unnamed))),
        }
    }

    /// Checks a batch of `tokens` by which sequences grow by `n`.
    fn check_tokens(&self, tokens: &[Token], n: usize) -> Result<(), LlamaError> {
        let got = tokens.len();
        if got == 0 || got > self.n_batch() {
            return Err(LlamaError::TooManyTokens { got, limit: self.n_batch(), what: "batch" });
        }
        let limit = self.n_ctx() - self.n_past;
        if n > limit {
            return Err(LlamaError::TooManyTokens { got: n, limit, what: "rest of the context" });
        }
        let n_vocab = self.model.n_vocab();
        let unknown = |&&t: &&Token| !usize::try_from(t).is_ok_and(|t| t < n_vocab);
        match tokens.iter().find(unknown) {
            Some(&token) => Err(LlamaError::UnknownToken { token, n_vocab }),
            None => Ok(()),
        }
    }

    /// Logits of the `index`-th token of the last batch, one per token of the vocabulary.
    ///
    /// # Errors
    /// [`LlamaError::NoLogits`] if the token was no output.
    pub fn logits(&self, index: usize) -> Result<&[f32], LlamaError> {
        let is_output = self.batch.outputs.get(index).is_some_and(|&output| output != 0);
        let raw = if is_output {
            // SAFETY: the token is one of the last batch and was marked as an output.
            unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), index as i32) }
        } else {
            std::ptr::null_mut()
        };
        if raw.is_null() {
            return Err(LlamaError::NoLogits(index));
        }
        // SAFETY: llama.cpp returns as many floats as the vocabulary has tokens, and keeps them until the
        // next call of `decode`, which needs the context mutably.
        Ok(unsafe { std::slice::from_raw_parts(raw, self.model.n_vocab()) })
    }

    /// Forgets all tokens, so that a new sequence can begin.
    pub fn clear(&mut self) {
        // SAFETY: the context is valid; a model without memory has a null pointer, which is left alone.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            if !memory.is_null() {
                sys::llama_memory_clear(memory, true);
            }
        }
        self.n_past = 0;
        self.batch.outputs.clear();
    }

    /// Number of positions of a sequence; llama.cpp may round up what was asked for.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) as usize }
    }

    /// Largest number of tokens in one batch.
    #[must_use]
    pub fn n_batch(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) as usize }
    }

    /// Number of tokens in the sequence so far.
    #[must_use]
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// The observer.
    #[must_use]
    pub fn observer(&self) -> &O {
        // SAFETY: the pointer is valid, and llama.cpp uses it only inside of `decode`.
        unsafe { &self.watch.as_ref().observer }
    }

    /// The observer, to be changed between evaluations.
    #[must_use]
    pub fn observer_mut(&mut self) -> &mut O {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { &mut self.watch.as_mut().observer }
    }
}

impl Batch {
    /// Fills the arrays with one sequence that goes on at `n_past`.
    fn go_on(&mut self, tokens: &[Token], n_past: usize, outputs: Outputs) -> sys::llama_batch {
        let n = tokens.len();
        self.positions = (n_past..n_past + n).map(|p| p as sys::llama_pos).collect();
        self.ids = vec![0; n];
        self.outputs = vec![i8::from(outputs == Outputs::All); n];
        self.outputs[n - 1] = 1;
        self.with(tokens)
    }

    /// Fills the arrays with sequences that all go on at `n_past`, and are all outputs.
    fn side_by_side(&mut self, tokens: &[Token], n_past: usize) -> sys::llama_batch {
        let n = tokens.len();
        self.positions = vec![n_past as sys::llama_pos; n];
        self.ids = (0..n).map(|id| id as sys::llama_seq_id).collect();
        self.outputs = vec![1; n];
        self.with(tokens)
    }

    fn with(&mut self, tokens: &[Token]) -> sys::llama_batch {
        let n = tokens.len();
        self.tokens = tokens.to_vec();
        self.n_sequences = vec![1; n];
        self.sequences = self.ids.iter_mut().map(std::ptr::from_mut).collect();
        sys::llama_batch {
            n_tokens: n as i32,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.n_sequences.as_mut_ptr(),
            seq_id: self.sequences.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }
}

fn raw_params<O: Observer>(
    params: ContextParams,
    watch: NonNull<Watch<O>>,
) -> sys::llama_context_params {
    // SAFETY: no preconditions.
    let mut raw = unsafe { sys::llama_context_default_params() };
    raw.n_ctx = params.n_ctx;
    raw.n_batch = params.n_batch;
    raw.n_ubatch = params.n_batch;
    raw.n_threads = params.n_threads;
    raw.n_threads_batch = params.n_threads;
    raw.type_k = params.cache_type.raw();
    raw.type_v = params.cache_type.raw();
    if params.cache_type == Type::F32 {
        raw.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    raw.cb_eval = Some(visit::<O>);
    raw.cb_eval_user_data = watch.as_ptr().cast();
    raw
}

/// What llama.cpp calls for every node, before (`ask`) and after it is computed.
///
/// A panic must not unwind through C++: it is kept until `decode` has control again.
unsafe extern "C" fn visit<O: Observer>(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the pointer given to llama.cpp, used by nobody else during `decode`.
    let watch = unsafe { &mut *user_data.cast::<Watch<O>>() };
    if watch.stopped || watch.ended || watch.panic.is_some() {
        // Over: wanting every node ends each part of the graph after its first one.
        return ask;
    }
    let observer = &mut watch.observer;
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: ggml passes a valid tensor of the graph; when it does not ask, its backend has been
        // synchronized, so no thread is computing.
        unsafe {
            match ask {
                true => (observer.wants(Node::new(tensor)), false),
                false => {
                    let goes_on = observer.observe(Computed::new(tensor));
                    (goes_on, goes_on && observer.has_enough())
                }
            }
        }
    }));
    match result {
        Ok((answer, ended)) => {
            (watch.stopped, watch.ended) = (!ask && !answer, ended);
            answer && !ended
        }
        Err(panic) => {
            watch.panic = Some(panic);
            ask
        }
    }
}
