//! What a file says about its model before a weight is read: whether it is one that is run here, and how large it is.

use format::{MatrixId, Role};
use ggml::gguf::{GgufFile, TensorInfo};

use crate::TuningError;
use crate::config::Config;

/// Bytes of a number in F32.
const F32_BYTES: u64 = 4;

/// A model that can be run here, by its numbers of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Width of the hidden state.
    pub n_embd: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Weights outside the FFN matrices.
    n_other: u64,
    /// Weights of the FFN matrices, by layer.
    n_ffn: Vec<[u64; 3]>,
    pub(crate) config: Config,
}

impl Outline {
    /// Reads it from the metadata and the list of tensors of `file`, whose weights are not looked at. Where it can be
    /// read, [`crate::Llama::load`] and [`crate::Llama::ffn`] work.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`] or [`TuningError::Gguf`].
    pub fn of(file: &GgufFile) -> Result<Self, TuningError> {
        let config = Config::read(file)?;
        let shapes = Shapes { file, config: &config };
        shapes.check_names()?;
        let mut n_other = 0;
        let mut n_ffn = Vec::new();
        for layer in 0..config.n_layer {
            n_other += shapes.check_attention(layer)?;
            n_ffn.push(shapes.check_ffn(layer)?);
        }
        let (n_vocab, n_outer) = shapes.check_ends()?;
        Ok(Self { n_embd: config.n_embd, n_vocab, n_other: n_other + n_outer, n_ffn, config })
    }

    /// Checks that every one of `tokens` is in the vocabulary.
    ///
    /// # Errors
    /// [`TuningError::Token`] with the first that is not.
    pub fn check_tokens(&self, tokens: &[i32]) -> Result<(), TuningError> {
        check_tokens(tokens, self.n_vocab)
    }

    /// Bytes that a [`crate::Tuner`] of `coded` holds at least: the model, and of every coded matrix its decoded form
    /// and the gradient.
    #[must_use]
    pub fn tuner_bytes(&self, coded: &[MatrixId]) -> u64 {
        let all: u64 = self.n_ffn.iter().flatten().sum();
        let coded: u64 = coded.iter().map(|t| self.n_ffn[t.layer][t.role as usize]).sum();
        F32_BYTES * (self.n_other + all + 2 * coded)
    }
}

/// Checks that every one of `tokens` is in a vocabulary of `n_vocab`.
pub(crate) fn check_tokens(tokens: &[i32], n_vocab: usize) -> Result<(), TuningError> {
    let known = |t: &i32| usize::try_from(*t).is_ok_and(|t| t < n_vocab);
    match tokens.iter().find(|t| !known(t)) {
        None => Ok(()),
        Some(token) => Err(TuningError::Token { token: *token, n_vocab }),
    }
}

/// Matrices and norms of a layer besides the FFN, each with its shape.
const ATTENTION: [&str; 6] = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"];

/// The tensors of a file, which must be those of `config`.
struct Shapes<'a> {
    file: &'a GgufFile,
    config: &'a Config,
}

impl Shapes<'_> {
    fn refuse(&self, reason: String) -> TuningError {
        TuningError::Unsupported { path: self.file.path().to_owned(), reason }
    }

    /// Refuses layers that hold more than is computed here: biases, experts, further norms.
    fn check_names(&self) -> Result<(), TuningError> {
        let known = |part: &str| {
            ATTENTION.contains(&part) || Role::ALL.iter().any(|role| role.part() == part)
        };
        for tensor in self.file.tensors() {
            let Some(rest) = tensor.name().strip_prefix("blk.") else { continue };
            let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
            if !part.strip_suffix(".weight").is_some_and(known) {
                return Err(self.refuse(format!("has a tensor '{}'", tensor.name())));
            }
            if layer.parse().map_or(true, |n: usize| n >= self.config.n_layer) {
                let n = self.config.n_layer;
                let reason =
                    format!("has a tensor '{}' beside its layers 0 to {}", tensor.name(), n - 1);
                return Err(self.refuse(reason));
            }
        }
        Ok(())
    }

    /// The tensor `name`, which must have `dims` (innermost first); the number of its weights.
    fn expect(&self, name: &str, dims: &[usize]) -> Result<u64, TuningError> {
        let tensor = self.floats(name)?;
        if tensor.dims() != dims {
            let reason = format!("has a tensor '{name}' of {:?}, not {dims:?}", tensor.dims());
            return Err(self.refuse(reason));
        }
        Ok(tensor.n_elements() as u64)
    }

    fn floats(&self, name: &str) -> Result<&TensorInfo, TuningError> {
        let tensor = self.file.require_tensor(name)?;
        if !tensor.ty().has_to_float() {
            let reason = format!("has a tensor '{name}' of type {}", tensor.ty());
            return Err(self.refuse(reason));
        }
        Ok(tensor)
    }

    fn check_attention(&self, layer: usize) -> Result<u64, TuningError> {
        let Config { n_embd, n_head, n_head_kv, head_dim, .. } = *self.config;
        let (q, kv) = (n_head * head_dim, n_head_kv * head_dim);
        let dims: [&[usize]; 6] =
            [&[n_embd], &[n_embd, q], &[n_embd, kv], &[n_embd, kv], &[q, n_embd], &[n_embd]];
        let parts = ATTENTION.iter().zip(dims);
        parts.map(|(part, dims)| self.expect(&format!("blk.{layer}.{part}.weight"), dims)).sum()
    }

    /// Weights of gate, up and down.
    fn check_ffn(&self, layer: usize) -> Result<[u64; 3], TuningError> {
        let name = |role| MatrixId { layer, role }.weight();
        let (n_embd, up) = (self.config.n_embd, self.floats(&name(Role::Up))?);
        let n_ff = up.dims().get(1).copied().unwrap_or(1);
        Ok([
            self.expect(&name(Role::Gate), &[n_embd, n_ff])?,
            self.expect(&name(Role::Up), &[n_embd, n_ff])?,
            self.expect(&name(Role::Down), &[n_ff, n_embd])?,
        ])
    }

    /// Tokens of the vocabulary, and the weights before and behind the layers.
    fn check_ends(&self) -> Result<(usize, u64), TuningError> {
        let n_embd = self.config.n_embd;
        let n_vocab = self.floats(EMBEDDING)?.dims().get(1).copied().unwrap_or(1);
        let mut n = self.expect(EMBEDDING, &[n_embd, n_vocab])?;
        if self.file.tensor(OUTPUT).is_some() {
            n += self.expect(OUTPUT, &[n_embd, n_vocab])?;
        }
        Ok((n_vocab, n + self.expect(OUTPUT_NORM, &[n_embd])?))
    }
}

pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// Where it is missing, the embedding takes its place.
pub(crate) const OUTPUT: &str = "output.weight";
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";
