//! One token per character of the tasks, one per byte for everything else.
//!
//! Written as llama.cpp's SentencePiece vocabulary: no two tokens ever merge, so a text has one tokenization.
//! The end of a text is the byte token of the newline, which ends an answer and reads as itself.

use ggml::gguf::{GgufWriter, WriteError};

/// Characters with a token of their own; U+2581 is SentencePiece's space.
const CHARACTERS: &str = "\u{2581}abcdefghijklmnopqrstuvwxyz0123456789+=()[]";

/// Tokens before those of the bytes: unknown, begin, end (unused, but programs expect the three).
const N_SPECIAL: u32 = 3;
/// Begin of a text.
pub const BOS: u32 = 1;
/// End of an answer.
pub const NEWLINE: u32 = N_SPECIAL + b'\n' as u32;

/// `+` and `=`, by their places among the characters.
pub const PLUS: u32 = N_SPECIAL + 256 + 37;
/// See [`PLUS`].
pub const EQUALS: u32 = PLUS + 1;

/// Token types of llama.cpp (`llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Number of tokens.
#[must_use]
pub fn size() -> usize {
    N_SPECIAL as usize + 256 + CHARACTERS.chars().count()
}

/// Tokens of `text`, without a begin.
#[must_use]
pub fn tokenize(text: &str) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(text.len());
    for c in text.chars() {
        let escaped = if c == ' ' { '\u{2581}' } else { c };
        match CHARACTERS.chars().position(|known| known == escaped) {
            Some(i) => tokens.push(N_SPECIAL + 256 + i as u32),
            None => {
                let mut bytes = [0; 4];
                tokens.extend(c.encode_utf8(&mut bytes).bytes().map(|b| N_SPECIAL + u32::from(b)));
            }
        }
    }
    tokens
}

/// Adds the vocabulary to a GGUF.
///
/// # Errors
/// [`WriteError::Key`]: never, the keys are good.
pub fn add_to(writer: &mut GgufWriter) -> Result<(), WriteError> {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
    let characters = CHARACTERS.chars().map(String::from);
    let tokens: Vec<String> = special.into_iter().chain(bytes).chain(characters).collect();
    let kind = |i: usize| match i as u32 {
        0 => UNKNOWN,
        1 | 2 => CONTROL,
        i if i < N_SPECIAL + 256 => BYTE,
        _ => NORMAL,
    };
    writer.set("tokenizer.ggml.model", "llama")?;
    writer.set("tokenizer.ggml.scores", (0..size()).map(|i| -(i as f32)).collect::<Vec<_>>())?;
    writer.set("tokenizer.ggml.token_type", (0..size()).map(kind).collect::<Vec<_>>())?;
    writer.set("tokenizer.ggml.tokens", tokens)?;
    writer.set("tokenizer.ggml.bos_token_id", BOS)?;
    writer.set("tokenizer.ggml.eos_token_id", NEWLINE)?;
    writer.set("tokenizer.ggml.unknown_token_id", 0u32)?;
    writer.set("tokenizer.ggml.add_bos_token", true)?;
    writer.set("tokenizer.ggml.add_space_prefix", false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signs_are_where_they_are_said_to_be() {
        assert_eq!(tokenize("+=\n"), [PLUS, EQUALS, NEWLINE]);
    }
}
