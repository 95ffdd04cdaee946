//! Checks of everything a user gives, before any time is spent.

use std::fs::File;
use std::path::Path;

use builder::files;
use calibration::{Calibration, Overlap, TextSketch};
use ggml::gguf::{Array, GgufFile, Value};
use ggml::llama::{Backend, Model, ModelParams, Token};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::io;

/// Keys that decide how text becomes tokens.
const VOCABULARY_KEYS: [&str; 5] = [
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
];

/// Shared runs of tokens above which an evaluation text counts as seen: fewer may be common phrases.
const FEW: usize = 3;

/// SHA-256 of the file at `path`.
///
/// # Errors
/// [`Error::Io`].
pub fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(io(path, "read"))?;
    files::sha256(&mut file, |_| Ok(())).map_err(io(path, "read"))
}

/// Checks that both files have the same vocabulary.
///
/// # Errors
/// [`Error::Input`] with the first difference.
pub fn check_vocabularies(base: &GgufFile, other: &GgufFile) -> Result<(), Error> {
    for key in VOCABULARY_KEYS {
        let (a, b) = (base.value(key), other.value(key));
        if a != b {
            let (a, b) = (describe(a.as_ref()), describe(b.as_ref()));
            let reason = format!(
                "its vocabulary differs from that of {}: {key} is {b} here and {a} there; give the file that it was made from as --base",
                base.path().display()
            );
            return Err(Error::input(other.path(), reason));
        }
    }
    Ok(())
}

fn describe(value: Option<&Value>) -> String {
    match value {
        None => "missing".to_owned(),
        Some(Value::String(text)) => format!("'{text}'"),
        Some(Value::Array(Array::String(v))) => format!("a list of {}", v.len()),
        Some(Value::Array(a)) => format!("a list of {}", a.len()),
        Some(_) => "another".to_owned(),
    }
}

/// The vocabulary of the model at `path`, without its weights.
///
/// # Errors
/// [`Error::Llama`] with llama.cpp's reason.
pub fn vocabulary(path: &Path) -> Result<Model, Error> {
    let params = ModelParams { vocab_only: true, ..ModelParams::default() };
    Ok(Model::load(Backend::init(), path, &params)?)
}

/// The text at `path` as tokens.
///
/// # Errors
/// [`Error::Io`]; [`Error::Input`] if it is not UTF-8; [`Error::Llama`].
pub fn tokens(model: &Model, path: &Path) -> Result<Vec<Token>, Error> {
    let bytes = std::fs::read(path).map_err(io(path, "read"))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let reason = format!(
            "byte {} is not UTF-8: convert the text, for example with iconv",
            e.valid_up_to()
        );
        Error::input(path, reason)
    })?;
    let mut all = calibration::capture::Text::new(model);
    all.push(text, false).map_err(|e| Error::input(path, e.to_string()))?;
    Ok(all.tokens().to_vec())
}

/// The number of chunks of `n_ctx` tokens that a text of `n_tokens` gives, at most `wanted`.
///
/// # Errors
/// [`Error::Input`] if there is none. llama-perplexity wants room for two.
pub fn chunks(path: &Path, n_tokens: usize, n_ctx: usize, wanted: usize) -> Result<usize, Error> {
    if n_tokens < 2 * n_ctx {
        let reason = format!(
            "has {n_tokens} tokens, llama-perplexity needs at least {} for chunks of {n_ctx}: give a longer text, or a smaller --ctx",
            2 * n_ctx
        );
        return Err(Error::input(path, reason));
    }
    Ok(wanted.min(n_tokens / n_ctx))
}

/// What the evaluation text shares with the text that the file was calibrated on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OverlapReport {
    /// Where the calibration text is known from.
    pub source: String,
    /// Tokens in a run.
    pub run_tokens: usize,
    /// Runs of the evaluation text that could be compared: a sample where the calibration text is long.
    pub n_compared: usize,
    /// How many of them the calibration text has too.
    pub n_shared: usize,
    /// Whether there are more than a few.
    pub suspicious: bool,
}

/// Compares `tokens` with a calibration text.
#[must_use]
pub fn overlap(sketch: &TextSketch, tokens: &[Token], source: String) -> OverlapReport {
    let Overlap { n_compared, n_shared } = sketch.overlap(tokens);
    OverlapReport {
        source,
        run_tokens: calibration::SHINGLE_TOKENS,
        n_compared,
        n_shared,
        suspicious: n_shared > FEW,
    }
}

/// The sketch that a coded file carries.
#[must_use]
pub fn recorded_sketch(file: &GgufFile) -> Option<TextSketch> {
    match file.value(codec::keys::CALIBRATION_SHINGLES)? {
        Value::Array(Array::U64(hashes)) => TextSketch::from_hashes(hashes),
        _ => None,
    }
}

/// SHA-256 of the calibration that a coded file says it was made with.
#[must_use]
pub fn recorded_calibration(file: &GgufFile) -> Option<String> {
    let record = file.string(codec::keys::RECORD).ok()??;
    let record: builder::Record = serde_json::from_str(&record).ok()?;
    record.arguments.get("--calib").map(|v| v.trim_start_matches("sha256:").to_owned())
}

/// The sketch in the calibration at `path`, which must be the one that the coded file was made with, if it
/// says so.
///
/// # Errors
/// [`Error::Calibration`], [`Error::Input`] for another calibration.
pub fn calibration_sketch(path: &Path, recorded: Option<&str>) -> Result<TextSketch, Error> {
    let calibration = Calibration::open(path)?;
    let found = sha256(path)?;
    if recorded.is_some_and(|r| r != found) {
        return Err(Error::input(
            path,
            "is not the calibration that --sc was made with: leave out --calib, or give that one",
        ));
    }
    Ok(calibration.record().sketch.clone())
}

#[cfg(test)]
mod tests {
    use test_models::Model as TestModel;

    use super::*;

    #[test]
    fn a_short_text_is_refused_and_a_long_one_cut() {
        let path = Path::new("t.txt");
        let text = chunks(path, 1023, 512, 4).unwrap_err().to_string();
        assert!(text.starts_with("t.txt: has 1023 tokens") && text.contains("--ctx"), "{text}");
        assert_eq!(chunks(path, 1024, 512, 4).unwrap(), 2);
        assert_eq!(chunks(path, 10_000, 512, 4).unwrap(), 4);
    }

    #[test]
    fn other_vocabularies_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, n_vocab| {
            let path = folder.path().join(name);
            TestModel { n_vocab, ..TestModel::default() }.write(&path).unwrap();
            GgufFile::open(&path).unwrap()
        };
        let (a, b) = (write("a.gguf", 288), write("b.gguf", 290));
        assert!(check_vocabularies(&a, &a).is_ok());
        let text = check_vocabularies(&a, &b).unwrap_err().to_string();
        assert!(
            text.contains("b.gguf") && text.contains("a.gguf") && text.contains("a list of 290"),
            "{text}"
        );
    }

    #[test]
    fn a_text_becomes_tokens_without_loading_weights() {
        let folder = tempfile::tempdir().unwrap();
        let (path, text) = (folder.path().join("m.gguf"), folder.path().join("t.txt"));
        TestModel::default().write(&path).unwrap();
        std::fs::write(&text, "abc").unwrap();
        let model = vocabulary(&path).unwrap();
        assert!(tokens(&model, &text).unwrap().len() >= 3);
        std::fs::write(&text, [0xff, 0xfe]).unwrap();
        assert!(tokens(&model, &text).unwrap_err().to_string().contains("not UTF-8"));
    }
}
