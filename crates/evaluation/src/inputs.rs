//! Checks of everything a user gives, before any time is spent.

use std::path::Path;

use calibration::{Calibration, Overlap, TextSketch};
use format::keys;
use ggml::gguf::{Array, GgufFile, Value};
use inspect::Making;
use llama::{Backend, Model, ModelParams, Token};
use program::files;
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

/// Architectures whose graphs in the pinned llama.cpp end in embeddings, whatever their metadata say: those whose file in
/// `src/models` sets no `t_logits`.
const EMBEDDING_ARCHITECTURES: [&str; 12] = [
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "llama-embed",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
    "wavtokenizer-dec",
];

/// So near to ln(tokens in the vocabulary), a chunk's mean negative log-likelihood is that of equal logits: running
/// perplexities have 4 decimals.
const EQUAL_LOGITS: f64 = 1e-4;

/// Why `file` gives no logits for the next token, if its metadata says so: perplexity, divergence and prompts would
/// measure nothing.
///
/// # Errors
/// [`Error::Inspect`] if it names no architecture.
pub fn without_logits(file: &GgufFile) -> Result<Option<String>, Error> {
    let architecture = file.architecture()?;
    let key = |name: &str| format!("{architecture}.{name}");
    let (causal, pooling) = (key("attention.causal"), key("pooling_type"));
    if EMBEDDING_ARCHITECTURES.contains(&&*architecture) {
        return Ok(Some(format!("the architecture '{architecture}' computes embeddings")));
    }
    if file.value(&causal) == Some(Value::Bool(false)) {
        return Ok(Some(format!("its attention looks ahead ({causal} = false)")));
    }
    match file.value(&pooling).and_then(|v| v.as_u64()) {
        Some(kind) if kind > 0 => Ok(Some(format!("it computes embeddings ({pooling} = {kind})"))),
        _ => Ok(None),
    }
}

/// The same by what was measured: all `chunk_nll` are those of equal logits for `n_vocab` tokens.
#[must_use]
pub fn equal_logits(chunk_nll: &[f64], n_vocab: usize) -> Option<String> {
    let expected = (n_vocab as f64).ln();
    let is_equal = |nll: &f64| (nll - expected).abs() <= EQUAL_LOGITS;
    (!chunk_nll.is_empty() && chunk_nll.iter().all(is_equal))
        .then(|| format!("its perplexity is the size of the vocabulary, {n_vocab}, in every chunk"))
}

/// Flags with which llama.cpp's programs run the coded matrices of `file`.
#[must_use]
pub fn coded_flags(file: &GgufFile) -> Vec<String> {
    let schemes = file.schemes();
    let is_needed = |flag: &&str| schemes.values().any(|scheme| format::flag_of(scheme) == *flag);
    format::flags().into_iter().filter(is_needed).map(|flag| format!("--{flag}")).collect()
}

/// SHA-256 of the file at `path`.
///
/// # Errors
/// [`Error::Common`].
pub fn sha256(path: &Path) -> Result<String, Error> {
    Ok(files::sha256_of_files([path], |_| Ok(()))?)
}

/// SHA-256 of all parts of `model`, one after the other.
///
/// # Errors
/// [`Error::Common`].
pub fn sha256_of_model(model: &GgufFile) -> Result<String, Error> {
    Ok(files::sha256_of_files(model.paths(), |_| Ok(()))?)
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
/// [`Error::Common`]; [`Error::Input`] if it is not UTF-8; [`Error::Llama`].
pub fn tokens(model: &Model, path: &Path) -> Result<Vec<Token>, Error> {
    let is_file = std::fs::metadata(path).map_or(true, |m| m.is_file());
    if !is_file {
        let reason = "is no file, and it is read several times: write the text to a file";
        return Err(Error::input(path, reason));
    }
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
    match file.value(keys::CALIBRATION_SHINGLES)? {
        Value::Array(Array::U64(hashes)) => TextSketch::from_hashes(hashes),
        _ => None,
    }
}

/// SHA-256 of the calibration that a coded file says it was made with.
#[must_use]
pub fn recorded_calibration(file: &GgufFile) -> Option<String> {
    let making = Making::of(file)?;
    making.arguments.get("--calib").map(|v| v.trim_start_matches("sha256:").to_owned())
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
    Ok(calibration.provenance().sketch.clone())
}

#[cfg(test)]
mod tests {
    use fixtures::models::Model as TestModel;

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
    fn models_without_next_token_logits_are_known_by_their_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let reason = |key: &str, value: Value| {
            let set = |w: &mut ggml::gguf::GgufWriter| w.set(key, value);
            TestModel::default().write_with(&path, set, |_, _| {}).unwrap();
            without_logits(&GgufFile::open(&path).unwrap()).unwrap()
        };
        let text = |key: &str, value: Value| reason(key, value).unwrap();
        assert!(text("general.architecture", "bert".into()).contains("'bert'"));
        assert!(text("llama.attention.causal", false.into()).contains("looks ahead"));
        assert!(text("llama.pooling_type", 3u32.into()).contains("pooling_type = 3"));
        assert_eq!(reason("llama.pooling_type", 0u32.into()), None);
        assert_eq!(reason("llama.attention.causal", true.into()), None);
    }

    #[test]
    fn equal_logits_are_found_out() {
        let ln = 288f64.ln();
        assert!(equal_logits(&[ln, ln + 2e-5], 288).unwrap().contains("288"));
        for chunks in [&[][..], &[ln, ln + 1e-3], &[ln - 0.1, ln + 0.1]] {
            assert_eq!(equal_logits(chunks, 288), None);
        }
    }

    #[test]
    fn flags_are_those_that_the_schemes_of_a_file_need() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let flags = |schemes: &[&str]| {
            let set = |w: &mut ggml::gguf::GgufWriter| {
                schemes.iter().zip(format::Role::PLAIN).try_for_each(|(scheme, role)| {
                    w.set(&keys::tensor_scheme(format::MatrixId { layer: 0, role }), *scheme)
                })
            };
            TestModel::default().write_with(&path, set, |_, _| {}).unwrap();
            coded_flags(&GgufFile::open(&path).unwrap())
        };
        assert_eq!(flags(&["sections", "sign"]), ["--statecells"]);
        assert_eq!(flags(&["seeddelta"]), ["--seeddelta"]);
        assert_eq!(flags(&["seeddelta", "sections"]), ["--statecells", "--seeddelta"]);
        assert!(flags(&[]).is_empty());
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
