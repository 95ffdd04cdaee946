//! The Kullback-Leibler divergence of a coded model from the dense one, in this process.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use ggml::Type;
use llama::{
    Backend, Context, ContextParams, Model, ModelParams, Outputs, Override, Token, log_sum_exp,
};
use program::Interrupt;

use crate::Error;

/// The flag that asks for all of it.
pub(super) const FLAG: &str = "--measure-sensitivity";
/// Tokens of a context, as llama-perplexity takes them; the second half of them counts.
pub(super) const N_CTX: usize = 512;

/// What is run.
pub(super) struct Passage<'a> {
    /// The dense model.
    pub(super) model: &'a Path,
    /// The text.
    pub(super) text: &'a Path,
    /// Contexts of it.
    pub(super) n_contexts: usize,
    /// Threads.
    pub(super) n_threads: usize,
}

/// A text and what the dense model says after every token of it that counts.
pub(super) struct Divergence {
    contexts: Vec<Vec<Token>>,
    /// Logits, [n_vocab] for every position that counts, one context after the other.
    logits: File,
    n_threads: i32,
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::flag(FLAG, error.to_string())
}

impl Divergence {
    /// Runs the dense model over the text of `passage`. Its predictions are kept in a file in `folder` that has no name.
    ///
    /// # Errors
    /// [`Error::Program`] for a text that cannot be read or is too short, or a model that llama.cpp refuses;
    /// [`Error::Stopped`].
    pub(super) fn new(
        passage: &Passage<'_>,
        folder: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(passage.text).map_err(program::io(passage.text, "read"))?;
        let model = Model::load(Backend::init(), passage.model, &ModelParams::default());
        let model = model.map_err(refused)?;
        let contexts = contexts(&model, &text, passage)?;
        let n_threads = i32::try_from(passage.n_threads).unwrap_or(i32::MAX);
        let file = tempfile::tempfile_in(folder).map_err(program::io(folder, "write"))?;
        let mut out = BufWriter::new(&file);
        each_position(&model, &contexts, (n_threads, interrupt), |logits| {
            let bytes = logits.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
            out.write_all(&bytes).map_err(|e| program::io(folder, "write")(e).into())
        })?;
        out.flush().map_err(program::io(folder, "write"))?;
        drop(out);
        Ok(Self { contexts, logits: file, n_threads })
    }

    /// Mean over the positions that count of the divergence of the coded model at `path`, nats.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn of(&mut self, path: &Path, interrupt: &Interrupt) -> Result<f64, Error> {
        let overrides = vec![(format::enable_key(format::SECTIONS.flag), Override::Bool(true))];
        let params = ModelParams { overrides, ..ModelParams::default() };
        let model = Model::load(Backend::init(), path, &params).map_err(refused)?;
        self.logits.rewind().map_err(program::io(path, "read the dense model's predictions of"))?;
        let mut known = BufReader::new(&self.logits);
        let (mut sum, mut n, mut row) = (0.0, 0usize, vec![0; 4 * model.n_vocab()]);
        each_position(&model, &self.contexts, (self.n_threads, interrupt), |logits| {
            let read = known.read_exact(&mut row);
            read.map_err(program::io(path, "read the dense model's predictions of"))?;
            let (values, _) = row.as_chunks::<4>();
            let base: Vec<f32> = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
            sum += divergence(&base, logits);
            n += 1;
            Ok(())
        })?;
        Ok(sum / n.max(1) as f64)
    }
}

/// The text as contexts of [`N_CTX`] tokens, each from the start token on where the model has one.
fn contexts(model: &Model, text: &str, passage: &Passage<'_>) -> Result<Vec<Vec<Token>>, Error> {
    let tokens = model.tokenize(text, false, false).map_err(refused)?;
    let start = model.bos();
    let n_body = N_CTX - usize::from(start.is_some());
    let all = tokens.chunks_exact(n_body).take(passage.n_contexts);
    let contexts: Vec<Vec<Token>> =
        all.map(|body| start.iter().chain(body).copied().collect()).collect();
    if contexts.is_empty() {
        let reason = format!(
            "{}: has {} tokens, {n_body} are the least: give more text",
            passage.text.display(),
            tokens.len()
        );
        return Err(Error::flag(FLAG, reason));
    }
    Ok(contexts)
}

/// Gives `take` the logits after every token of the second half of each context.
fn each_position(
    model: &Model,
    contexts: &[Vec<Token>],
    (n_threads, interrupt): (i32, &Interrupt),
    mut take: impl FnMut(&[f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let n = N_CTX as u32;
    let params = ContextParams { n_ctx: n, n_batch: n, n_threads, cache_type: Type::F16 };
    let mut context = Context::new(model, params).map_err(refused)?;
    for tokens in contexts {
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        context.clear();
        context.decode(tokens, Outputs::All).map_err(refused)?;
        for position in N_CTX / 2..N_CTX - 1 {
            take(context.logits(position).map_err(refused)?)?;
        }
    }
    Ok(())
}

/// `sum p (ln p - ln q)` of the distributions with these logits, nats.
fn divergence(base: &[f32], other: &[f32]) -> f64 {
    let (p, q) = (log_sum_exp(base), log_sum_exp(other));
    let term = |(a, b): (&f32, &f32)| {
        let (ln_p, ln_q) = (f64::from(*a) - p, f64::from(*b) - q);
        ln_p.exp() * (ln_p - ln_q)
    };
    base.iter().zip(other).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_distributions() {
        let logits = |p: [f64; 3], shift: f32| p.map(|p| p.ln() as f32 + shift);
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]);
        let known = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((divergence(&logits(p, 0.0), &logits(q, 90.0)) - known).abs() < 1e-5);
        assert!(divergence(&logits(p, 3.0), &logits(p, -70.0)).abs() < 1e-5);
    }
}
