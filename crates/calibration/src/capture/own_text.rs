//! Text that a model writes itself, to calibrate it where nobody has given a text.
//!
//! Tokens are drawn from the model's own predictions at temperature 1, as in LLM-QAT (Liu et al. 2023, "Data-free
//! quantization aware training for large language models"): what the model finds likely is what the model was trained on. Models
//! that were trained on conversations write both sides of one when they get what stands before a user's words (Xu et al. 2024,
//! "Magpie"): half of the passages of such a model are conversations.

use std::collections::HashSet;
use std::ops::Range;

use ggml::Type;
use llama::{ContextParams, LlamaError, Model, Sequences, Token};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::CaptureError;

/// Passages written at the same time.
const SIDE_BY_SIDE: usize = 32;

/// What passages begin with behind the token that divides texts, in turn. Most begin with nothing.
const OPENINGS: [&str; 8] = ["", "", "The", "", "# ", "", "In", "1. "];

/// What passages begin with that would begin with nothing at all.
const FIRST: &str = "\n";

/// A passage goes in circles when its last so many tokens have fewer different pairs of neighbours than this: prose has
/// about 60, code 45 and more, a loop of n tokens n. Small models fall into loops even at temperature 1, and tokens in a loop tell
/// nothing about any other text.
const LOOP_TOKENS: usize = 64;
const LOOP_PAIRS: usize = 32;

/// A model that writes.
pub struct OwnText<'m> {
    sequences: Sequences<'m>,
    bos: Option<Token>,
    /// Tokens that passages begin with, in turn.
    openings: Vec<Vec<Token>>,
    /// Tokens of a passage, without BOS.
    n_body: usize,
    seed: u64,
}

impl<'m> OwnText<'m> {
    /// Prepares to write contexts of `n_ctx` tokens, BOS included. `seed` and a passage's number decide about the passage,
    /// the number of threads does not.
    ///
    /// # Errors
    /// [`CaptureError::Llama`].
    pub fn new(
        model: &'m Model,
        n_ctx: usize,
        n_threads: usize,
        seed: u64,
    ) -> Result<Self, CaptureError> {
        let params = ContextParams {
            n_ctx: u32::try_from(n_ctx).unwrap_or(u32::MAX),
            n_batch: SIDE_BY_SIDE as u32,
            n_threads: i32::try_from(n_threads).unwrap_or(i32::MAX),
            cache_type: Type::F16,
        };
        let sequences = Sequences::new(model, params, SIDE_BY_SIDE as u32)?;
        let bos = model.bos();
        let n_body = n_ctx - usize::from(bos.is_some());
        Ok(Self { sequences, bos, openings: openings(model)?, n_body, seed })
    }

    /// Passages that are best written by one call of [`Self::write`].
    #[must_use]
    pub fn side_by_side(&self) -> usize {
        SIDE_BY_SIDE
    }

    /// Writes the passages of these `numbers`, at most [`Self::side_by_side`]: their tokens one after the other, without
    /// BOS. `heard` is told after every token of all passages, and says whether to stop.
    ///
    /// # Errors
    /// [`CaptureError::Stopped`], [`CaptureError::Predictions`], [`CaptureError::NoPredictions`] or [`CaptureError::Llama`].
    pub fn write(
        &mut self,
        numbers: Range<usize>,
        heard: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Token>, CaptureError> {
        let mut passages: Vec<Passage> = numbers.map(|number| self.begin(number)).collect();
        self.sequences.clear();
        if let Some(bos) = self.bos {
            self.sequences.step(&vec![bos; passages.len()])?;
        }
        for at in 0..self.n_body {
            self.extend(&mut passages, at)?;
            if heard() {
                return Err(CaptureError::Stopped);
            }
            if at + 1 < self.n_body {
                let tokens: Vec<Token> = passages.iter().map(|p| p.tokens[at]).collect();
                self.sequences.step(&tokens)?;
            }
        }
        Ok(passages.into_iter().flat_map(|passage| passage.tokens).collect())
    }

    /// Draws token `at` of the passages that have none there yet.
    fn extend(&self, passages: &mut [Passage], at: usize) -> Result<(), CaptureError> {
        // Before the first token without BOS there is nothing to go by: every passage has an opening then.
        let mut growing = Vec::new();
        for (i, passage) in passages.iter_mut().enumerate().filter(|(_, p)| p.tokens.len() <= at) {
            let logits = self.sequences.logits(i).map_err(|e| match e {
                LlamaError::NoLogits(_) => CaptureError::NoPredictions,
                other => other.into(),
            })?;
            // llama.cpp leaves zeros where the model has no output matrix.
            if logits.iter().all(|logit| *logit == logits[0]) {
                return Err(CaptureError::NoPredictions);
            }
            growing.push((passage, logits));
        }
        growing.into_par_iter().try_for_each(|(passage, logits)| {
            let token = draw(logits, passage.rng.random()).ok_or(CaptureError::Predictions)?;
            passage.tokens.push(token);
            Ok::<(), CaptureError>(())
        })?;
        let drawn = passages.iter_mut().filter(|passage| passage.tokens.len() == at + 1);
        for passage in drawn.filter(|passage| goes_in_circles(&passage.tokens[passage.start..])) {
            let opening = passage.rng.random_range(..self.openings.len());
            self.open(passage, opening);
        }
        Ok(())
    }

    fn begin(&self, number: usize) -> Passage {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(number as u64);
        let mut passage = Passage { tokens: Vec::new(), start: 0, rng };
        self.open(&mut passage, number % self.openings.len());
        passage
    }

    /// Goes on with the beginning of a text; BOS is in front of the first one already.
    fn open(&self, passage: &mut Passage, opening: usize) {
        passage.start = passage.tokens.len();
        if passage.start > 0 {
            passage.tokens.extend(self.bos);
        }
        passage.tokens.extend(&self.openings[opening]);
        passage.tokens.truncate(self.n_body);
    }
}

/// A passage that is being written.
struct Passage {
    tokens: Vec<Token>,
    /// Where the text that is being written begins.
    start: usize,
    rng: ChaCha8Rng,
}

/// What passages begin with. With BOS in front of every passage that may be nothing, else it is something. Every second is the
/// beginning of a conversation, if the model knows one.
fn openings(model: &Model) -> Result<Vec<Vec<Token>>, CaptureError> {
    let divider = if model.bos().is_some() { None } else { model.divider() };
    let begins_with_nothing = model.bos().or(divider).is_none();
    let before_user = model.before_user();
    let conversation = before_user.map(|text| model.tokenize(&text, false, true)).transpose()?;
    let mut openings = Vec::with_capacity(2 * OPENINGS.len());
    for text in OPENINGS {
        openings.extend(conversation.clone());
        let text = if begins_with_nothing && text.is_empty() { FIRST } else { text };
        let tokens =
            if text.is_empty() { Vec::new() } else { model.tokenize(text, false, false)? };
        openings.push(divider.into_iter().chain(tokens).collect());
    }
    Ok(openings)
}

/// Whether a text ends in a loop, exact or nearly so.
fn goes_in_circles(text: &[Token]) -> bool {
    let Some(last) = text.len().checked_sub(LOOP_TOKENS) else { return false };
    let pairs: HashSet<&[Token]> = text[last..].windows(2).collect();
    pairs.len() < LOOP_PAIRS
}

/// The token that the number `u` from 0 to 1 stands for when the tokens share that range by their probabilities; `None` if
/// there are none.
fn draw(logits: &[f32], u: f64) -> Option<Token> {
    let peak = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let weight = |v: f32| f64::from(v - peak).exp();
    let total: f64 = logits.iter().map(|&v| weight(v)).sum();
    if !total.is_finite() {
        return None;
    }
    let mut left = u * total;
    let found = logits.iter().position(|&v| {
        left -= weight(v);
        left < 0.0
    });
    // Rounding may leave a little of the last share.
    let last = || logits.iter().rposition(|&v| weight(v) > 0.0);
    Token::try_from(found.or_else(last)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let logits = [0.0f32, 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        let n = 8000;
        let mut counts = [0; 4];
        for i in 0..n {
            let token = draw(&logits, (f64::from(i) + 0.5) / f64::from(n)).unwrap();
            counts[token as usize] += 1;
        }
        assert_eq!(counts, [1000, 2000, 0, 5000]);
        assert_eq!((draw(&logits, 0.0), draw(&logits, 1.0)), (Some(0), Some(3)));
    }

    #[test]
    fn loops_are_seen_and_repeated_words_are_none() {
        let of = |n: i32, period: i32| (0..n).map(|i| i % period).collect::<Vec<Token>>();
        assert!(goes_in_circles(&of(64, 1)) && goes_in_circles(&of(64, 31)));
        assert!(!goes_in_circles(&of(64, 32)) && !goes_in_circles(&of(63, 1)));
        // What a text has been before does not matter.
        let text = [of(500, 500), of(64, 2)].concat();
        assert!(goes_in_circles(&text) && !goes_in_circles(&text[..500]));
        // Nearly a loop: every fourth token is another one.
        let nearly: Vec<Token> = (0..64).map(|i| if i % 4 == 0 { i / 16 } else { 99 }).collect();
        assert!(goes_in_circles(&nearly));
    }

    #[test]
    fn predictions_that_are_no_numbers_are_refused() {
        assert_eq!(draw(&[0.0, f32::NAN], 0.5), None);
        assert_eq!(draw(&[f32::NEG_INFINITY; 2], 0.5), None);
        assert_eq!(draw(&[f32::INFINITY, 0.0], 0.5), None);
        assert_eq!(draw(&[], 0.5), None);
    }
}
