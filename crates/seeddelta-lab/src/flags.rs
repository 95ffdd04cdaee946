//! The flags that say what a model is measured on, as clap reads them.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tiny_model::dataset::Split;

/// Examples or a text, and how much of it.
#[derive(Clone, Debug, Args, Serialize)]
pub struct MaterialFlags {
    /// Folder of `tiny-transformer data`: measure answers of test.jsonl, calibrate on validation.jsonl
    #[arg(long, value_name = "FOLDER", conflicts_with = "text")]
    pub examples: Option<PathBuf>,

    /// Text to measure on
    #[arg(long, value_name = "FILE", requires = "calib_text")]
    pub text: Option<PathBuf>,

    /// Text to foretell from; another one than --text
    #[arg(long, value_name = "FILE", requires = "text")]
    pub calib_text: Option<PathBuf>,

    /// Examples per task that are measured
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub per_task: usize,

    /// The two context lengths: examples per context with --examples [default: 1,4], tokens with --text
    /// [default: 64,256]
    #[arg(long, value_name = "N,N", value_delimiter = ',', num_args = 2)]
    pub contexts: Option<Vec<usize>>,

    /// Tokens of --text that are measured in each context length, about
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub text_tokens: usize,
}

impl MaterialFlags {
    /// The files that are read.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            [&self.text, &self.calib_text].into_iter().flatten().cloned().collect();
        if let Some(folder) = &self.examples {
            files.extend([MEASURED, FORETOLD].map(|split| folder.join(split.file_name())));
        }
        files
    }
}

/// What is measured.
pub(crate) const MEASURED: Split = Split::Test;
/// What is foretold from.
pub(crate) const FORETOLD: Split = Split::Validation;
