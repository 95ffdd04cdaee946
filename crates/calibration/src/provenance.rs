//! Where a calibration comes from.

use crate::{PassageKind, TextSketch, passage_kind};

/// What a model is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Number of layers.
    pub n_layer: u32,
    /// Width of the hidden state, the length of gate's and up's input.
    pub n_embd: u32,
    /// Width of the widest FFN, the length of down's input.
    pub n_ff: u32,
}

/// A text file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextId {
    /// Name without folders.
    pub name: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
}

/// Where a calibration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The model that was run.
    pub model: ModelId,
    /// The text, in the order in which it was read.
    pub texts: Vec<TextId>,
    /// Fingerprint of the part of the text that was used.
    pub sketch: TextSketch,
    /// Tokens to fit to.
    pub n_fitted: u64,
    /// Tokens held out.
    pub n_held_out: u64,
    /// Tokens per context.
    pub n_ctx: u32,
    /// All contexts, one after the other in the order in which they were run, fitted and held out as
    /// [`passage_kind`](crate::passage_kind) says; empty in files that do not hold them.
    pub tokens: Vec<i32>,
    /// Seed that chose the samples.
    pub seed: u64,
    /// Program and version.
    pub tool: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
}

impl Provenance {
    /// The contexts of `kind`.
    pub fn contexts(&self, kind: PassageKind) -> impl Iterator<Item = &[i32]> {
        let contexts = self.tokens.chunks_exact((self.n_ctx as usize).max(1)).enumerate();
        contexts.filter(move |(i, _)| passage_kind(*i) == kind).map(|(_, context)| context)
    }
}
