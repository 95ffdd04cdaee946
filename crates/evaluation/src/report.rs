//! The report of an evaluation, as JSON (`docs/schema/evaluation-report.schema.json`).

use builder::inspect::FfnReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inputs::OverlapReport;
use crate::logs::{Divergence, Perplexity};
use crate::machine::Machine;
use crate::measured::{Measured, value};
use crate::memory::Sizes;
use crate::qa::QaReport;
use crate::stats::{Estimate, median, paired_difference};
use crate::variants::Extent;
use crate::verdict::Verdict;

/// Version of [`EvaluationReport`]; it grows when a field changes its meaning or goes away.
pub const EVALUATION_VERSION: u32 = 1;

/// Everything that an evaluation found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EvaluationReport {
    /// Version of this schema.
    pub schema_version: u32,
    /// Name of the program.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// Version of the llama.cpp that the program was built with.
    pub llama_cpp: String,
    /// When the evaluation ended, in UTC.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// The command line, program first.
    pub command: Vec<String>,
    /// How it was measured.
    pub settings: Settings,
    /// The evaluation text.
    pub text: FileId,
    /// What the text shares with the one that the file was calibrated on; `null` if that is not known.
    pub overlap: Option<OverlapReport>,
    /// Why there are no perplexities, divergences and prompts: the model gives no logits for the next token. `null` if it
    /// does.
    #[serde(default)]
    pub no_logits: Option<String>,
    /// What a reader should know before the figures.
    pub warnings: Vec<String>,
    /// The compressed file in three numbers, against the base.
    pub statecells: Summary,
    /// The acceptance rules.
    pub verdict: Verdict,
    /// The base, the compressed file, then the other forms of the base.
    pub files: Vec<FileReport>,
    /// FFN matrices of the compressed file.
    pub tensors: Vec<FfnReport>,
    /// Short prompts; `null` if they were not asked, as with `no_logits`.
    pub qa: Option<Measured<QaReport>>,
}

/// How an evaluation measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// Threads of every program.
    pub threads: usize,
    /// Tokens per chunk of text.
    pub n_ctx: usize,
    /// Chunks of text.
    pub chunks: usize,
    /// Type of the keys in the KV cache.
    pub cache_type_k: String,
    /// Type of the values in the KV cache.
    pub cache_type_v: String,
    /// Rounds of the speed measurement.
    pub rounds: usize,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens that it generates.
    pub generation_tokens: usize,
}

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

/// The compressed file against the base.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// 10^9 bytes that the FFN matrices are smaller than in the base, as in the file's key of this name.
    pub mem_saved_gb: Option<f64>,
    /// Tokens per second of generation over the base's: median over rounds of the ratio within a round.
    pub speedup: Option<f64>,
    /// Perplexity over the base's, less 1: 0.02 is 2 % worse.
    pub gap_ppl: Option<f64>,
    /// `mem_saved_gb` against the types of Q5_K_M for the same matrices.
    pub mem_saved_gb_q5_k_m: Option<f64>,
    /// `speedup` against the file whose FFN has the types of Q5_K_M.
    pub speedup_q5_k_m: Option<f64>,
    /// `gap_ppl` against the file whose FFN has the types of Q5_K_M.
    pub gap_ppl_q5_k_m: Option<f64>,
}

impl EvaluationReport {
    /// The file `key`.
    #[must_use]
    pub fn file(&self, key: &str) -> Option<&FileReport> {
        self.files.iter().find(|f| f.key == key)
    }

    /// Whether any measurement failed.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        let of_file = |f: &FileReport| {
            f.sizes.failure.is_some()
                || f.perplexity.as_ref().is_some_and(|m| m.failure.is_some())
                || f.divergence.as_ref().is_some_and(|m| m.failure.is_some())
                || f.speed.as_ref().is_some_and(|m| m.failure.is_some())
        };
        self.files.iter().any(of_file) || self.qa.as_ref().is_some_and(|q| q.failure.is_some())
    }
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

impl Summary {
    /// `coded` against `base` and against `reference`, the Q5_K_M FFN.
    #[must_use]
    pub fn new(coded: &FileReport, base: &FileReport, reference: &FileReport) -> Self {
        let saved = |other: &FileReport| {
            Some((other.sizes()?.ffn_bytes as f64 - coded.sizes()?.ffn_bytes as f64) / 1e9)
        };
        let speed = |other| Some(coded.speed_ratio(other)?.1);
        let gap = |other| Some(coded.ppl_gap(other)?.value);
        Self {
            mem_saved_gb: saved(base),
            speedup: speed(base),
            gap_ppl: gap(base),
            mem_saved_gb_q5_k_m: saved(reference),
            speedup_q5_k_m: speed(reference),
            gap_ppl_q5_k_m: gap(reference),
        }
    }
}

/// The JSON schema of [`EvaluationReport`], as committed in `docs/schema/`.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(EvaluationReport);
    serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        builder::report::check_schema("evaluation-report.schema.json", &schema(), "evaluation");
    }
}
