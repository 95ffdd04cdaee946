//! The flags that say what a model is measured on, as clap reads them.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use crate::tiny::dataset::Split;

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
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = at_least_one())]
    pub per_task: usize,

    /// The two context lengths: examples per context with --examples [default: 1,4], tokens with --text
    /// [default: 64,256]
    #[arg(long, value_name = "N,N", value_parser = two_lengths)]
    pub contexts: Option<[usize; 2]>,

    /// Tokens of --text that are measured in each context length, about
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = at_least_one())]
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

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn two_lengths(text: &str) -> Result<[usize; 2], String> {
    let number = |text: &str| text.parse().ok().filter(|&n| n > 0);
    let pair = text.split_once(',').and_then(|(a, b)| Some([number(a)?, number(b)?]));
    pair.ok_or_else(|| "write two numbers above 0, such as 64,256".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_two_numbers_above_0() {
        assert_eq!(two_lengths("64,256"), Ok([64, 256]));
        for bad in ["", "64", "0,64", "64,0", "a,b", "1,2,3", "-1,2"] {
            assert!(two_lengths(bad).is_err(), "{bad}");
        }
    }
}
