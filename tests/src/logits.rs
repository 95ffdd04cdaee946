//! Logits of a model that llama.cpp runs inside of the test's own process.

use std::path::Path;

use ggml::Type;
use llama::{
    Backend, Context, ContextParams, LlamaError, Model, ModelParams, Outputs, Override, Token,
};

/// How a text is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One token per evaluation.
    Single,
    /// All tokens in one.
    Batch,
}

/// A model with its coded matrices run from their codes.
///
/// # Errors
/// As [`Model::load`].
pub fn load_coded(path: &Path) -> Result<Model, LlamaError> {
    // what the flags --statecells and --seeddelta set
    let set = |flag: &str| (format::enable_key(flag), Override::Bool(true));
    let overrides = format::flags().into_iter().map(set).collect();
    Model::load(Backend::init(), path, &ModelParams { overrides, ..Default::default() })
}

/// A model as it is.
///
/// # Errors
/// As [`Model::load`].
pub fn load_dense(path: &Path) -> Result<Model, LlamaError> {
    Model::load(Backend::init(), path, &ModelParams::default())
}

/// Logits after each of `tokens`, one vector per token.
///
/// # Panics
/// If the evaluation fails.
#[must_use]
pub fn logits(model: &Model, tokens: &[Token], pace: Pace, n_threads: i32) -> Vec<Vec<f32>> {
    let n = u32::try_from(tokens.len()).expect("a short text");
    // In F16, a difference in the last place may come out 5e-4 apart and grow from there.
    let params = ContextParams { n_ctx: n, n_batch: n, n_threads, cache_type: Type::F32 };
    let mut context = Context::new(model, params).expect("a context");
    let per_call = if pace == Pace::Single { 1 } else { tokens.len() };
    let mut all = Vec::new();
    for tokens in tokens.chunks(per_call) {
        context.decode(tokens, Outputs::All).expect("an evaluation");
        all.extend((0..tokens.len()).map(|i| context.logits(i).expect("an output").to_vec()));
    }
    all
}

/// How far `found` is from `expected`: the largest difference over the largest expected logit, the worst of
/// all tokens.
///
/// # Panics
/// If there are no tokens, the numbers of logits differ, or one is not finite.
#[must_use]
pub fn distance(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f32 {
    assert!(!expected.is_empty() && expected.len() == found.len());
    let of_token = |(expected, found): (&Vec<f32>, &Vec<f32>)| {
        assert_eq!(expected.len(), found.len());
        assert!(expected.iter().chain(found).all(|v| v.is_finite()));
        let difference = expected.iter().zip(found).map(|(e, f)| (e - f).abs());
        let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
        difference.fold(0.0f32, f32::max) / largest
    };
    expected.iter().zip(found).map(of_token).fold(0.0, f32::max)
}
