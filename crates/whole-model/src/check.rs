//! What a file says about its model before a weight is read: whether it is one that is run here, and how large it is.

use format::{MatrixId, Role};
use ggml::gguf::{GgufFile, TensorInfo};

use crate::TuningError;
use crate::config::{Config, FREQUENCY_TENSORS};
use crate::loss::TOKENS;
use crate::parts::{self, EMBEDDING, OUTPUT, OUTPUT_BIAS, OUTPUT_NORM, Part};

/// Bytes of a number in F32.
const F32_BYTES: u64 = 4;

/// How names of tensors start that rank or embed a text: logits do not come from them.
const OTHER_HEADS: [&str; 3] = ["cls.", "dense_2.", "dense_3."];

/// A model that can be run here, by its numbers of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Width of the hidden state.
    pub n_embd: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Weights by layer: of all tensors, and of the FFN matrices by role.
    layers: Vec<(u64, [u64; 3])>,
    pub(crate) config: Config,
}

impl Outline {
    /// Reads it from the metadata and the list of tensors of `file`, whose weights are not looked at. Where it can be
    /// read, [`crate::Transformer::open`] works.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`] or [`TuningError::Gguf`].
    pub fn of(file: &GgufFile) -> Result<Self, TuningError> {
        let config = Config::read(file)?;
        let shapes = Shapes { file, config: &config };
        let (mut layers, mut known) = (Vec::new(), Vec::new());
        for layer in 0..config.n_layer {
            let parts = shapes.parts(layer)?;
            layers.push(shapes.check_layer(&parts)?);
            known.extend(parts.into_iter().map(|part| part.name));
        }
        shapes.check_names(&known)?;
        let n_vocab = shapes.check_ends()?;
        Ok(Self { n_embd: config.n_embd, n_vocab, layers, config })
    }

    /// Checks that every one of `tokens` is in the vocabulary.
    ///
    /// # Errors
    /// [`TuningError::Token`] with the first that is not.
    pub fn check_tokens(&self, tokens: &[i32]) -> Result<(), TuningError> {
        check_tokens(tokens, self.n_vocab)
    }

    /// Bytes that a [`crate::Tuner`] of `coded` holds at least, where each of a step's contexts has `n_ctx` tokens: the
    /// layer with the most weights, of every coded matrix in it the gradient, the hidden states before each layer, and
    /// the logits of some tokens.
    #[must_use]
    pub fn tuner_bytes(&self, coded: &[MatrixId], (n_contexts, n_ctx): (usize, usize)) -> u64 {
        let layer = |(n, (all, ffn)): (usize, &(u64, [u64; 3]))| {
            let of = |id: &MatrixId| ffn[id.role as usize];
            all + coded.iter().filter(|id| id.layer == n).map(of).sum::<u64>()
        };
        let largest = self.layers.iter().enumerate().map(layer).max().unwrap_or(0);
        let states = self.layers.len() * n_contexts * n_ctx * self.n_embd;
        let logits = 2 * TOKENS.min(n_ctx) * self.n_vocab;
        F32_BYTES * (largest + states as u64 + logits as u64)
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

/// The tensors of a file, which must be those of `config`.
struct Shapes<'a> {
    file: &'a GgufFile,
    config: &'a Config,
}

impl Shapes<'_> {
    fn refuse(&self, reason: String) -> TuningError {
        TuningError::Unsupported { path: self.file.path().to_owned(), reason }
    }

    /// Refuses tensors besides `known`, which are computed with: biases and norms of another place, adapters, experts.
    fn check_names(&self, known: &[String]) -> Result<(), TuningError> {
        let is_known = |name: &str| {
            [EMBEDDING, OUTPUT, OUTPUT_BIAS, OUTPUT_NORM].contains(&name)
                || FREQUENCY_TENSORS.contains(&name)
                || OTHER_HEADS.iter().any(|start| name.starts_with(start))
                || known.iter().any(|k| k == name)
        };
        match self.file.tensors().iter().find(|tensor| !is_known(tensor.name())) {
            Some(tensor) => Err(self.refuse(format!("has a tensor '{}'", tensor.name()))),
            None => Ok(()),
        }
    }

    /// What the layer may have.
    fn parts(&self, layer: usize) -> Result<Vec<Part>, TuningError> {
        let down = self.floats(&MatrixId { layer, role: Role::Down }.weight())?;
        let is_fused = self.file.tensor(&parts::weight(layer, parts::QKV)).is_some();
        Ok(parts::of_layer(self.config, layer, down.dims()[0], is_fused))
    }

    /// Weights of a layer with these `parts`, in all and of its FFN matrices.
    fn check_layer(&self, parts: &[Part]) -> Result<(u64, [u64; 3]), TuningError> {
        let (mut all, mut ffn) = (0, [0; 3]);
        for part in parts {
            if !part.is_required && self.file.tensor(&part.name).is_none() {
                continue;
            }
            let n = self.expect(&part.name, &part.dims)?;
            all += n;
            if let Some(role) = part.role {
                ffn[role as usize] = n;
            }
        }
        Ok((all, ffn))
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

    /// Tokens of the vocabulary.
    fn check_ends(&self) -> Result<usize, TuningError> {
        let n_embd = self.config.n_embd;
        let n_vocab = self.floats(EMBEDDING)?.dims().get(1).copied().unwrap_or(1);
        self.expect(EMBEDDING, &[n_embd, n_vocab])?;
        if self.file.tensor(OUTPUT).is_some() {
            self.expect(OUTPUT, &[n_embd, n_vocab])?;
        }
        if self.file.tensor(OUTPUT_BIAS).is_some() {
            self.expect(OUTPUT_BIAS, &[n_vocab])?;
        }
        self.expect(OUTPUT_NORM, &[n_embd])?;
        Ok(n_vocab)
    }
}
