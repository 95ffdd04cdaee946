//! Examples as rows of tokens, with the positions whose next token counts.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::tiny::tasks::Example;
use crate::tiny::vocabulary::{BOS, EQUALS, PLUS, tokenize};

/// Label of a position whose next token does not count.
pub const NO_LABEL: u32 = u32::MAX;

/// Between the parts of a prompt.
const SIGNS: [u32; 2] = [PLUS, EQUALS];

/// An example in tokens.
#[derive(Clone, Debug)]
pub struct Encoded {
    tokens: Vec<u32>,
    n_prompt: usize,
}

impl Encoded {
    /// Tokens of prompt, answer and newline.
    #[must_use]
    pub fn new(example: &Example) -> Self {
        Self { tokens: tokenize(&example.line()), n_prompt: tokenize(&example.prompt).len() }
    }

    /// Stretches of a plain text, `length` tokens each, that count from their first token on; what is left at the end is
    /// dropped.
    #[must_use]
    pub fn of_text(text: &str, length: usize) -> Vec<Self> {
        let tokens = tokenize(text);
        let stretch = |tokens: &[u32]| Self { tokens: tokens.to_vec(), n_prompt: 0 };
        tokens.chunks_exact(length.max(1)).map(stretch).collect()
    }
}

/// Rows of equal length; row i has its tokens at `i * length`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Tokens of a row.
    pub length: usize,
    /// `[length, n_rows]`.
    pub tokens: Vec<u32>,
    /// The next token where it is part of an answer or a sign of a prompt, else [`NO_LABEL`]. `[length, n_rows]`.
    pub labels: Vec<u32>,
    /// For each example with its whole answer inside: the range of positions that predict it.
    pub answers: Vec<std::ops::Range<usize>>,
}

impl Batch {
    fn new(length: usize) -> Self {
        Self { length, tokens: Vec::new(), labels: Vec::new(), answers: Vec::new() }
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// Batch number `step` of a training: every row is begin and then random examples up to its end. Half of
    /// the rows begin inside of an example, as the text of a longer context does; that one does not count.
    /// Depends on seed and step alone, so a training can stop anywhere.
    #[must_use]
    pub fn random(
        examples: &[Encoded],
        n_rows: usize,
        length: usize,
        seed: u64,
        step: u64,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step + 1);
        let mut batch = Self::new(length);
        for _ in 0..n_rows {
            let mut row = Row::new();
            if rng.random_bool(0.5) {
                let first = &examples[rng.random_range(0..examples.len())];
                let cut = rng.random_range(1..first.tokens.len());
                row.push(&first.tokens[cut..], first.tokens.len());
            }
            while row.tokens.len() <= length {
                let next = &examples[rng.random_range(0..examples.len())];
                row.push(&next.tokens, next.n_prompt);
            }
            batch.push(&row);
        }
        batch
    }

    /// Cut in `n` parts of whole rows, as equal as can be.
    #[must_use]
    pub fn split(&self, n: usize) -> Vec<Self> {
        let rows = self.n_rows();
        let part = |i: usize| {
            let range = i * rows / n * self.length..(i + 1) * rows / n * self.length;
            let inside = self.answers.iter().filter(|a| range.contains(&a.start));
            Self {
                length: self.length,
                answers: inside.map(|a| a.start - range.start..a.end - range.start).collect(),
                tokens: self.tokens[range.clone()].to_vec(),
                labels: self.labels[range.clone()].to_vec(),
            }
        };
        (0..n).map(part).filter(|part| !part.tokens.is_empty()).collect()
    }

    /// Number of tokens of answers.
    #[must_use]
    pub fn n_counted(&self) -> usize {
        self.labels.iter().filter(|&&t| t != NO_LABEL).count()
    }

    /// One example per row, padded.
    ///
    /// # Panics
    /// If an example is longer than a row.
    #[must_use]
    pub fn single(examples: &[Encoded], length: usize) -> Self {
        let mut batch = Self::new(length);
        for example in examples {
            assert!(example.tokens.len() <= length, "a row of {length} is too short");
            let mut row = Row::new();
            row.push(&example.tokens, example.n_prompt);
            row.tokens.resize(length + 1, BOS);
            row.counts.resize(length + 1, false);
            batch.push(&row);
        }
        batch
    }

    fn push(&mut self, row: &Row) {
        let start = self.tokens.len();
        self.tokens.extend(&row.tokens[..self.length]);
        let next = (1..=self.length).map(|i| if row.counts[i] { row.tokens[i] } else { NO_LABEL });
        self.labels.extend(next);
        let inside = row.answers.iter().filter(|a| a.end <= self.length + 1);
        self.answers.extend(inside.map(|a| start + a.start - 1..start + a.end - 1));
    }
}

/// A row in the making: tokens, whether each is part of an answer, and where answers are.
struct Row {
    tokens: Vec<u32>,
    counts: Vec<bool>,
    answers: Vec<std::ops::Range<usize>>,
}

impl Row {
    fn new() -> Self {
        Self { tokens: vec![BOS], counts: vec![false], answers: Vec::new() }
    }

    /// Appends tokens of which all but the first `n_prompt` are an answer. Of a prompt only the signs between its parts
    /// count, the rest is random: who foresees them knows the places of the digits, without which sums are hardly
    /// ever found.
    fn push(&mut self, tokens: &[u32], n_prompt: usize) {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        let counts = |(i, t): (usize, &u32)| i >= n_prompt || SIGNS.contains(t);
        self.counts.extend(tokens.iter().enumerate().map(counts));
        if n_prompt < tokens.len() {
            self.answers.push(start + n_prompt..start + tokens.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::tasks::Task;

    fn examples() -> Vec<Encoded> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        (0..30).map(|i| Encoded::new(&Task::ALL[i % 3].example(&mut rng))).collect()
    }

    #[test]
    fn targets_are_the_next_tokens_of_answers() {
        let batch = Batch::random(&examples(), 20, 40, 1, 5);
        assert_eq!(batch.n_rows(), 20);
        let equals = tokenize("=")[0];
        for answer in &batch.answers {
            assert_eq!(batch.tokens[answer.start], equals);
            let last = answer.end - 1;
            assert_eq!(batch.labels[last], crate::tiny::vocabulary::NEWLINE);
            for i in answer.start..last {
                assert_eq!(batch.labels[i], batch.tokens[i + 1]);
            }
        }
        assert!(batch.answers.len() > 20);
        assert_eq!(batch, Batch::random(&examples(), 20, 40, 1, 5));
        assert_ne!(batch, Batch::random(&examples(), 20, 40, 1, 6));
    }

    #[test]
    fn single_rows_have_one_answer_each_and_count_its_signs() {
        let batch = Batch::single(&examples(), 24);
        assert_eq!(batch.answers.len(), 30);
        let counted: usize = batch.answers.iter().map(ExactSizeIterator::len).sum();
        let signs = batch.tokens.iter().filter(|t| SIGNS.contains(t)).count();
        assert_eq!(batch.n_counted(), counted + signs);
    }

    #[test]
    fn a_text_counts_everywhere_but_in_the_stretch_that_a_row_breaks_into() {
        let text = "one two three four five six seven eight nine ten ".repeat(9);
        let stretches = Encoded::of_text(&text, 40);
        assert_eq!(stretches.len(), text.len() / 40);
        let batch = Batch::random(&stretches, 40, 40, 1, 0);
        let whole = (0..40).filter(|row| batch.labels[row * 40] != NO_LABEL).count();
        assert!((10..30).contains(&whole), "{whole}");
        let share = batch.n_counted() as f64 / batch.tokens.len() as f64;
        assert!((0.6..0.9).contains(&share), "{share}");
    }

    #[test]
    fn parts_are_the_batch() {
        let batch = Batch::random(&examples(), 5, 40, 1, 5);
        let parts = batch.split(2);
        assert_eq!(parts.len(), 2);
        let all = |f: fn(&Batch) -> Vec<u32>| parts.iter().flat_map(f).collect::<Vec<_>>();
        assert_eq!(all(|b| b.tokens.clone()), batch.tokens);
        assert_eq!(all(|b| b.labels.clone()), batch.labels);
        assert_eq!(parts.iter().map(|b| b.answers.len()).sum::<usize>(), batch.answers.len());
        assert_eq!(parts[1].tokens[parts[1].answers[0].start], tokenize("=")[0]);
    }
}
