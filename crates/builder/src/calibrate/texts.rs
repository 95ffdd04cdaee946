//! Reading the text files.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use calibration::TextId;
use calibration::capture::{ChatFormat, Text, render_jsonl};
use ggml::gguf::GgufFile;
use llama::Model;
use program::files;

use super::CalibrationJob;

/// All files as tokens, and what they are known by.
pub(super) fn read<'m>(
    job: &CalibrationJob,
    source: &GgufFile,
    model: &'m Model,
) -> Result<(Text<'m>, Vec<TextId>)> {
    let mut text = Text::new(model);
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
    Ok((text, ids))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(OsStr::new("jsonl")))
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| {
        anyhow!("byte {} is not UTF-8: convert the text, for example with iconv", e.valid_up_to())
    })
}
