//! One file of an evaluation, and what was measured of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::logs::{Divergence, Perplexity};
use crate::measured::{Measured, value};
use crate::memory::Sizes;
use crate::stats::{Estimate, median, paired_difference};
use crate::variants::Extent;

/// A file and its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileId {
    /// Path as given.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// What a file is in an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// The dense model that everything is compared with.
    Base,
    /// The compressed file.
    Statecells,
    /// The base, requantized.
    Requantized,
}

/// One file and what was measured of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FileReport {
    /// Short name: `base`, `statecells`, `ffn-Q5_K_M`.
    pub key: String,
    /// Name for people.
    pub label: String,
    /// What it is.
    #[serde(rename = "role")]
    pub kind: FileKind,
    /// For a requantized file, its mixture of types.
    pub mix: Option<String>,
    /// For a requantized file, what of it.
    pub extent: Option<Extent>,
    /// Path; empty for a requantized file that was removed again.
    pub path: String,
    /// SHA-256, hexadecimal; `null` if there is no file.
    pub sha256: Option<String>,
    /// Sizes; failed if the file could not be made.
    pub sizes: Measured<Sizes>,
    /// Where types fell back on others, and other remarks.
    pub notes: Vec<String>,
    /// Perplexity by llama-perplexity alone; `null` for requantized files, whose `divergence` has it, and with
    /// `no_logits`.
    pub perplexity: Option<Measured<Perplexity>>,
    /// Distance from the base on the same tokens; `null` for the base, and with `no_logits`.
    pub divergence: Option<Measured<Divergence>>,
    /// Speed and memory while running; `null` if not asked for.
    pub speed: Option<Measured<Speed>>,
}

/// Speed of one file, round by round, and memory while it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Speed {
    /// Tokens per second of reading a prompt, by round.
    pub prompt: Vec<f64>,
    /// Tokens per second of writing, by round.
    pub generation: Vec<f64>,
    /// Peak resident memory of the program in bytes, the largest of the rounds; mapped weights count.
    pub peak_memory_bytes: u64,
}

impl FileReport {
    /// Whether more than its FFN was requantized.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.extent == Some(Extent::Whole)
    }

    /// Sizes, if known.
    #[must_use]
    pub fn sizes(&self) -> Option<&Sizes> {
        self.sizes.value.as_ref()
    }

    /// Perplexity: that of the comparison with the base where there is one, on the same tokens as all others.
    #[must_use]
    pub fn ppl(&self) -> Option<Estimate> {
        let compared = value(&self.divergence).map(|d| d.perplexity);
        compared.or_else(|| value(&self.perplexity).map(|p| p.estimate))
    }

    /// ln(PPL / PPL of the base) by chunk: zeros for the base itself.
    #[must_use]
    pub fn chunk_ln_ratio(&self) -> Option<Vec<f64>> {
        match self.kind {
            FileKind::Base => value(&self.perplexity).map(|p| vec![0.0; p.chunk_nll.len()]),
            _ => value(&self.divergence).map(|d| d.chunk_ln_ratio.clone()),
        }
    }

    /// PPL over that of `other`, less 1: from the mean over chunks of the paired difference of logarithms.
    #[must_use]
    pub fn ppl_gap(&self, other: &Self) -> Option<Estimate> {
        let (a, b) = (self.chunk_ln_ratio()?, other.chunk_ln_ratio()?);
        paired_difference(&a, &b).map(Estimate::exp_m1)
    }

    /// Speed over that of `other`: median over rounds of the ratio within a round, for prompt and generation.
    #[must_use]
    pub fn speed_ratio(&self, other: &Self) -> Option<(f64, f64)> {
        let (a, b) = (value(&self.speed)?, value(&other.speed)?);
        let ratio = |a: &[f64], b: &[f64]| {
            let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
            median(&ratios).filter(|_| a.len() == b.len())
        };
        Some((ratio(&a.prompt, &b.prompt)?, ratio(&a.generation, &b.generation)?))
    }
}
