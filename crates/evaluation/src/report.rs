//! The report of an evaluation, as JSON (`docs/schema/evaluation-report.schema.json`).

use inspect::FfnReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file_report::{FileId, FileReport};
use crate::inputs::OverlapReport;
use crate::machine::Machine;
use crate::measured::Measured;
use crate::qa::QaReport;
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
        program::check_schema("evaluation-report.schema.json", &schema(), "evaluation");
    }
}
