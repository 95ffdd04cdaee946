//! What models are measured on.

use std::fs;
use std::ops::Range;
use std::path::Path;

use llama::{Model, Token};

use crate::forms::Error;
use crate::tiny::dataset;
use crate::tiny::tasks::{Example, Task};

/// One sequence of tokens, and where its next tokens count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Tokens, with the begin of a text.
    pub tokens: Vec<Token>,
    /// Positions whose next token counts, in runs: an answer each, or half of a text.
    pub scored: Vec<(Range<usize>, Option<Task>)>,
}

/// Lines of examples in contexts of `per_context` lines each; every answer counts, with its newline.
///
/// # Errors
/// [`Error::Llama`], or [`Error::Unfit`] if the model's vocabulary merges characters: positions of answers are
/// counted in characters.
pub fn of_examples(
    model: &Model,
    examples: &[Example],
    per_context: usize,
) -> Result<Vec<Piece>, Error> {
    let piece = |examples: &[Example]| {
        let text: String = examples.iter().map(Example::line).collect();
        let tokens = model.tokenize(&text, true, false)?;
        let unfit = || Error::Unfit {
            path: model.path().to_owned(),
            reason: "its vocabulary is not that of the tiny transformer".to_owned(),
        };
        let n_special = tokens.len().checked_sub(text.len()).ok_or_else(unfit)?;
        if n_special != 1 {
            return Err(unfit());
        }
        let (mut start, mut scored) = (0, Vec::new());
        for e in examples {
            // The token at position p, counted with the begin, predicts that of character p.
            let answer = start + e.prompt.len()..start + e.line().len();
            scored.push((answer, Some(e.task)));
            start += e.line().len();
        }
        Ok(Piece { tokens, scored })
    };
    examples.chunks(per_context.max(1)).map(piece).collect()
}

/// The first `max_pieces` stretches of `n_ctx` tokens of the text at `path`; as in llama-perplexity each begins
/// with the begin of a text, and the second half counts.
///
/// # Errors
/// [`Error::Io`], [`Error::Llama`], or [`Error::Unfit`] if the text is shorter than one stretch.
pub fn of_text(
    model: &Model,
    path: &Path,
    n_ctx: usize,
    max_pieces: usize,
) -> Result<Vec<Piece>, Error> {
    let text =
        fs::read_to_string(path).map_err(|cause| Error::Io { path: path.to_owned(), cause })?;
    let tokens = model.tokenize(&text, false, false)?;
    let piece = |tokens: &[Token]| {
        let tokens: Vec<Token> = model.bos().into_iter().chain(tokens.iter().copied()).collect();
        let tokens = tokens[..n_ctx].to_vec();
        Piece { scored: vec![(n_ctx / 2..n_ctx - 1, None)], tokens }
    };
    let pieces: Vec<Piece> = tokens.chunks_exact(n_ctx).take(max_pieces).map(piece).collect();
    if pieces.is_empty() {
        let reason =
            format!("has {} tokens, a context needs {n_ctx}: take a longer text", tokens.len());
        return Err(Error::Unfit { path: path.to_owned(), reason });
    }
    Ok(pieces)
}

/// The first `per_task` examples of each task in the file at `path`.
///
/// # Errors
/// [`Error::Examples`].
pub fn examples(path: &Path, per_task: usize) -> Result<Vec<Example>, Error> {
    let all = dataset::read(path)?;
    let of = |task| all.iter().filter(move |e| e.task == task).take(per_task).cloned();
    let parts: Vec<Vec<Example>> = Task::ALL.iter().map(|&t| of(t).collect()).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    Ok((0..longest).flat_map(|i| parts.iter().filter_map(move |p| p.get(i)).cloned()).collect())
}
