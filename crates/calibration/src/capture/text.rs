//! Text files as one stream of tokens.

use llama::{Model, Token};

use super::CaptureError;

/// Bytes tokenized at once: some tokenizers need time that grows faster than the text.
const PIECE_BYTES: usize = 1 << 18;

/// The tokens of all files, one after the other, without BOS.
#[derive(Debug)]
pub struct Text<'m> {
    model: &'m Model,
    tokens: Vec<Token>,
}

impl<'m> Text<'m> {
    /// No text yet, for `model`'s tokenizer.
    #[must_use]
    pub fn new(model: &'m Model) -> Self {
        Self { model, tokens: Vec::new() }
    }

    /// Appends `text`. `parse_special` reads control tokens such as `<|im_start|>` in it.
    ///
    /// # Errors
    /// [`CaptureError::Llama`].
    pub fn push(&mut self, text: &str, parse_special: bool) -> Result<(), CaptureError> {
        for piece in pieces(text) {
            self.tokens.extend(self.model.tokenize(piece, false, parse_special)?);
        }
        Ok(())
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// All tokens, without the tokenizer.
    #[must_use]
    pub fn into_tokens(self) -> Vec<Token> {
        self.tokens
    }
}

/// Pieces of about [`PIECE_BYTES`] that end after a line where there is one.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let end = PIECE_BYTES.min(text.len());
        let limit = (0..=end).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let cut = match text[..limit].rfind('\n') {
            Some(end) if limit < text.len() => end + 1,
            _ => limit,
        };
        let (piece, rest) = text.split_at(cut);
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_cut_at_lines() {
        let lines = "some line\n".repeat(PIECE_BYTES / 4);
        let unbroken = "\u{20ac}".repeat(PIECE_BYTES / 2);
        for text in [&*lines, &*unbroken, "", "x"] {
            let parts: Vec<&str> = pieces(text).collect();
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|p| !p.is_empty() && p.len() <= PIECE_BYTES));
        }
        assert!(pieces(&lines).all(|p| p.ends_with('\n')));
        assert_eq!(pieces(&lines).count(), 3);
    }
}
