//! What a coded file says about how it was made.

use std::collections::BTreeMap;

use format::keys;
use ggml::gguf::GgufFile;
use serde::Deserialize;

/// The part of a coded file's record that tells of its making. The builder's own record knows more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Making {
    /// SHA-256 of the input file, or of all of its parts one after the other.
    pub input_sha256: String,
    /// Flags with their effective values; files stand as `sha256:` and their SHA-256.
    pub arguments: BTreeMap<String, String>,
}

impl Making {
    /// What `file` says; `None` if it has no record, or none of this form.
    #[must_use]
    pub fn of(file: &GgufFile) -> Option<Self> {
        serde_json::from_str(&file.string(keys::RECORD).ok()??).ok()
    }
}
