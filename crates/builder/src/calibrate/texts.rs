//! Reading the text files.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use calibration::TextId;
use calibration::capture::{ChatFormat, Text as Tokenized, render_jsonl};
use ggml::gguf::GgufFile;
use llama::{Model, Token};
use program::files;

use super::CalibrationJob;

/// A text in tokens.
pub(super) struct Text {
    /// Without BOS.
    pub(super) tokens: Vec<Token>,
    /// What the text is known by.
    pub(super) ids: Vec<TextId>,
}

/// All files as tokens; `None` if there are none.
pub(super) fn read(job: &CalibrationJob, source: &GgufFile, model: &Model) -> Result<Option<Text>> {
    if job.file.is_empty() {
        return Ok(None);
    }
    let mut text = Tokenized::new(model);
    let mut ids = Vec::new();
    for path in &job.file {
        let named = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => anyhow!("{e}: check the path"),
            _ => anyhow!("cannot read: {e}"),
        });
        let bytes = bytes.with_context(named)?;
        let content = utf8(&bytes).with_context(named)?;
        if job.chat || is_jsonl(path) {
            let template = source.string("tokenizer.chat_template")?;
            let format = ChatFormat::detect(template.as_deref()).with_context(named)?;
            text.push(&render_jsonl(content, format).with_context(named)?, true)?;
        } else {
            text.push(content, false).with_context(named)?;
        }
        let sha256 = files::sha256(&mut &bytes[..], |_| Ok(())).with_context(named)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ids.push(TextId { name, sha256 });
    }
    Ok(Some(Text { tokens: text.into_tokens(), ids }))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(OsStr::new("jsonl")))
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| {
        anyhow!("byte {} is not UTF-8: convert the text, for example with iconv", e.valid_up_to())
    })
}
