//! The smallest vocabulary that tokenizes any text: special tokens and one token per byte.

use ggml::gguf::{GgufWriter, WriteError};

/// Token types of llama.cpp (`llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Special tokens: unknown, begin, end.
const N_SPECIAL: usize = 3;

/// Adds a SentencePiece-like vocabulary of `n_vocab` tokens: the special ones, 256 bytes, then words.
pub fn add(writer: &mut GgufWriter, n_vocab: usize) -> Result<(), WriteError> {
    assert!(n_vocab >= N_SPECIAL + 256, "the vocabulary needs a token for every byte");
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
    // U+2581 stands for a space.
    let words = (0..n_vocab - N_SPECIAL - 256).map(|w| format!("\u{2581}w{w}"));
    let tokens: Vec<String> = special.into_iter().chain(bytes).chain(words).collect();
    let kind = |i: usize| match i {
        0 => UNKNOWN,
        1 | 2 => CONTROL,
        _ if i < N_SPECIAL + 256 => BYTE,
        _ => NORMAL,
    };
    writer.set("tokenizer.ggml.model", "llama")?;
    writer.set("tokenizer.ggml.tokens", tokens)?;
    writer.set("tokenizer.ggml.scores", (0..n_vocab).map(|i| -(i as f32)).collect::<Vec<_>>())?;
    writer.set("tokenizer.ggml.token_type", (0..n_vocab).map(kind).collect::<Vec<_>>())?;
    writer.set("tokenizer.ggml.bos_token_id", 1u32)?;
    writer.set("tokenizer.ggml.eos_token_id", 2u32)?;
    writer.set("tokenizer.ggml.unknown_token_id", 0u32)
}
