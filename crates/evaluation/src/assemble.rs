//! Putting the report together.

use std::fs;

use inspect::Making;

use crate::error::io;
use crate::file_report::{FileId, FileReport};
use crate::machine::{self, Machine};
use crate::measured::Measured;
use crate::options::Part;
use crate::qa::QaReport;
use crate::report::{EVALUATION_VERSION, EvaluationReport, Settings, Summary};
use crate::session::Session;
use crate::verdict::Verdict;
use crate::{Error, memory};

/// More than this share of the cores in use before anything ran: somebody else is at work.
const BUSY: f64 = 0.25;

/// So few chunks say little.
const FEW_CHUNKS: usize = 8;

impl Session<'_> {
    /// The report of everything that was found.
    pub(crate) fn report(
        &self,
        machine: Machine,
        files: Vec<FileReport>,
        qa: Option<Measured<QaReport>>,
    ) -> Result<EvaluationReport, Error> {
        let o = self.options;
        let find = |key: &str| files.iter().find(|f| f.key == key);
        let reference = find("ffn-Q5_K_M").expect("it is always measured");
        let (base, coded) = (&files[0], &files[1]);
        Ok(EvaluationReport {
            schema_version: EVALUATION_VERSION,
            tool: o.tool.clone(),
            tool_version: o.tool_version.clone(),
            llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
            date: machine::now(),
            warnings: self.warnings(&machine, &files),
            machine,
            command: o.command.clone(),
            settings: Settings {
                threads: o.n_threads,
                n_ctx: o.n_ctx,
                chunks: self.chunks,
                cache_type_k: o.kv.keys.to_string(),
                cache_type_v: o.kv.values.to_string(),
                rounds: o.rounds,
                prompt_tokens: o.prompt_tokens,
                generation_tokens: o.generation_tokens,
            },
            text: FileId {
                path: o.text.display().to_string(),
                bytes: fs::metadata(&o.text).map_err(io(&o.text, "read"))?.len(),
                sha256: self.text_sha256.clone(),
            },
            overlap: self.overlap.clone(),
            no_logits: self.no_logits.clone(),
            statecells: Summary::new(coded, base, reference),
            verdict: Verdict::new(
                coded,
                reference,
                find("whole-Q5_K_M"),
                self.no_logits.as_deref(),
            ),
            tensors: memory::inspect(&o.coded, None, o.kv)?.tensors,
            files,
            qa,
        })
    }

    fn warnings(&self, machine: &Machine, files: &[FileReport]) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut say = |text: String| warnings.push(text);
        if let Some(overlap) = self.overlap.as_ref().filter(|o| o.suspicious) {
            say(format!(
                "The evaluation text shares {} of {} compared runs of {} tokens with the calibration text ({}): perplexity and \
                 divergence of the compressed file are better than on text it has not seen. Use another --text.",
                overlap.n_shared, overlap.n_compared, overlap.run_tokens, overlap.source
            ));
        }
        if let Some(reason) = &self.no_logits {
            say(format!(
                "The model gives no logits for the next token: {reason}. Perplexity, divergence and prompts would say \
                 nothing about it and were left out; whether the codes keep its quality has to be measured by what it is for."
            ));
        }
        if Making::of(&self.coded).is_some_and(|making| making.input_sha256 != self.base_sha256) {
            say("The compressed file was made from another file than --base: differences are not due to its codes alone.".to_owned());
        }
        let quantized: Vec<&str> = dense_types(self);
        if !quantized.is_empty() {
            say(format!(
                "The FFN of the base is itself quantized ({}): requantizing flatters types whose grid contains it.",
                quantized.join(", ")
            ));
        }
        if self.options.wants(Part::Speed)
            && machine.load_at_start.is_some_and(|l| l > BUSY * machine.cores as f64)
        {
            let load = machine.load_at_start.unwrap_or_default();
            say(format!(
                "The machine was busy when the evaluation began ({load:.1} of {} cores in use by others): the speeds say little.",
                machine.cores
            ));
        }
        if self.chunks < FEW_CHUNKS {
            say(format!("{} chunks are few: see the standard errors.", self.chunks));
        }
        if files.iter().any(|f| f.speed.as_ref().is_some_and(|s| s.reused)) {
            say("Speeds were taken over from an earlier run.".to_owned());
        }
        warnings
    }
}

/// Quantized types among the FFN matrices of the base.
fn dense_types<'s>(session: &'s Session<'_>) -> Vec<&'s str> {
    let types = session.base_inspection.tensors.iter().filter_map(|t| t.dense_type.as_deref());
    let mut quantized: Vec<&str> =
        types.filter(|t| !matches!(*t, "f32" | "f16" | "bf16")).collect();
    quantized.sort_unstable();
    quantized.dedup();
    quantized
}
