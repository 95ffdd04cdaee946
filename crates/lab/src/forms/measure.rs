//! Loss, exact answers and greedy pack of a file that llama.cpp runs.

use std::collections::BTreeMap;
use std::path::Path;

use ggml::Type;
use llama::{
    Backend, Context, ContextParams, Model, ModelParams, Outputs, Override, Token, log_sum_exp,
};
use serde::Serialize;

use crate::forms::Error;
use crate::forms::texts::Piece;
use crate::tiny::tasks::Task;

/// A model with its coded matrices run from base and delta, as with `--seeddelta`.
///
/// # Errors
/// [`Error::Llama`].
pub fn load(path: &Path) -> Result<Model, Error> {
    let overrides = vec![(format::enable_key(format::SEEDDELTA.flag), Override::Bool(true))];
    Ok(Model::load(Backend::init(), path, &ModelParams { overrides, ..Default::default() })?)
}

/// What a model did on some pieces.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Tokens that counted.
    pub n_tokens: usize,
    /// Mean of their `-log p`, in nats.
    pub loss: f64,
    /// Per task: answers, and those of which every token was the most probable one.
    pub tasks: BTreeMap<String, (usize, usize)>,
    /// The most probable token at every position that counted, in order.
    #[serde(skip)]
    pub greedy: Vec<Token>,
}

impl Outcome {
    /// `exp` of the loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// Share of exact answers of all tasks.
    #[must_use]
    pub fn exact_rate(&self) -> Option<f64> {
        let (n, exact) = self.tasks.values().fold((0, 0), |(n, e), (a, b)| (n + a, e + b));
        (n > 0).then(|| exact as f64 / n as f64)
    }

    /// Share of positions where the most probable token is the one of `other`.
    #[must_use]
    pub fn agreement(&self, other: &Self) -> f64 {
        let same = self.greedy.iter().zip(&other.greedy).filter(|(a, b)| a == b).count();
        same as f64 / other.greedy.len().max(1) as f64
    }
}

/// Runs `model` over `pieces`, one context each.
///
/// # Errors
/// [`Error::Llama`].
pub fn measure(model: &Model, pieces: &[Piece], n_threads: i32) -> Result<Outcome, Error> {
    let n = pieces.iter().map(|p| p.tokens.len()).max().unwrap_or(1) as u32;
    let params = ContextParams { n_ctx: n, n_batch: n, n_threads, cache_type: Type::F16 };
    let mut context = Context::new(model, params)?;
    let (mut outcome, mut nll) = (Outcome::default(), 0.0);
    for piece in pieces {
        context.clear();
        context.decode(&piece.tokens, Outputs::All)?;
        for (range, task) in &piece.scored {
            let mut exact = true;
            for position in range.clone() {
                let logits = context.logits(position)?;
                let next = piece.tokens[position + 1];
                let best = argmax(logits);
                nll += log_sum_exp(logits) - f64::from(logits[next as usize]);
                exact &= best == next;
                outcome.greedy.push(best);
            }
            outcome.n_tokens += range.len();
            count(&mut outcome, *task, exact);
        }
    }
    outcome.loss = nll / outcome.n_tokens.max(1) as f64;
    Ok(outcome)
}

fn count(outcome: &mut Outcome, task: Option<Task>, exact: bool) {
    if let Some(task) = task {
        let entry = outcome.tasks.entry(task.to_string()).or_default();
        entry.0 += 1;
        entry.1 += usize::from(exact);
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> Token {
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    best as Token
}
