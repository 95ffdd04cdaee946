//! What to evaluate and how.

use std::path::PathBuf;

use ggml::Type;
use ggml::quant_mix::QuantMix;
use inspect::KvTypes;

use crate::importance::Helps;
use crate::qa::Pack;
use crate::variants::{Extent, Variant};

/// What to evaluate and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The dense model.
    pub base: PathBuf,
    /// The compressed file.
    pub coded: PathBuf,
    /// Evaluation text.
    pub text: PathBuf,
    /// Threads of every program.
    pub n_threads: usize,
    /// Tokens per chunk.
    pub n_ctx: usize,
    /// Chunks, at most.
    pub chunks: usize,
    /// Folder for reports and logs.
    pub outdir: PathBuf,
    /// Folder for measurements and requantized files; `cache` in `outdir` if `None`.
    pub cache: Option<PathBuf>,
    /// Mixtures to compare with. The FFN of Q5_K_M is always among them: the rules need it.
    pub against: Vec<QuantMix>,
    /// Importance matrix for the requantized files; a calibration with activations stands in for the FFN.
    pub imatrix: Option<PathBuf>,
    /// Prompts.
    pub pack: Pack,
    /// Types of the KV cache.
    pub kv: KvTypes,
    /// Rounds of the speed measurement.
    pub rounds: usize,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens that it generates.
    pub generation_tokens: usize,
    /// What to leave out.
    pub skip: Vec<Part>,
    /// Whether finished measurements are used again.
    pub resume: bool,
    /// Whether requantized files and logits stay.
    pub keep_variants: bool,
    /// The calibration of the compressed file.
    pub calib: Option<PathBuf>,
    /// The text that it was calibrated on.
    pub calib_text: Vec<PathBuf>,
    /// Folder of llama.cpp's programs.
    pub bin_dir: PathBuf,
    /// Name of the program.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// The command line, program first.
    pub command: Vec<String>,
}

/// A part that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Speed and memory while running.
    Speed,
    /// Prompts.
    Qa,
    /// Whole requantized files.
    Whole,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "speed" => Ok(Self::Speed),
            "qa" => Ok(Self::Qa),
            "whole" => Ok(Self::Whole),
            _ => Err("use speed, qa or whole".to_owned()),
        }
    }
}

impl Options {
    /// The files that hold the result: for programs, and for people.
    #[must_use]
    pub fn reports(&self) -> [PathBuf; 2] {
        ["report.json", "report.html"].map(|name| self.outdir.join(name))
    }

    /// Whether `part` is wanted.
    #[must_use]
    pub fn wants(&self, part: Part) -> bool {
        !self.skip.contains(&part)
    }

    /// The forms of the base to compare with, each once: Q5_K_M first. `helps` says where there is importance; what cannot be
    /// made without it is left out where there is none.
    #[must_use]
    pub fn variants(&self, helps: Helps) -> Vec<Variant> {
        let mut mixes = vec![QuantMix::Q5_K_M];
        for mix in &self.against {
            if !mixes.contains(mix) {
                mixes.push(*mix);
            }
        }
        let form = |extent| move |mix| Variant { mix, extent, has_imatrix: helps.with(extent) };
        let mut all: Vec<Variant> = mixes.into_iter().map(form(Extent::Ffn)).collect();
        if self.wants(Part::Whole) {
            all.extend(self.against.iter().copied().map(form(Extent::Whole)));
        }
        all.retain(|variant| variant.has_imatrix || !variant.mix.needs_imatrix());
        all
    }

    /// Flags for the KV cache of llama.cpp's programs; quantized values need flash attention.
    pub(crate) fn cache_flags(&self) -> Vec<String> {
        if self.kv == KvTypes::default() {
            return Vec::new();
        }
        let mut flags = vec![
            "-ctk".to_owned(),
            self.kv.keys.to_string(),
            "-ctv".to_owned(),
            self.kv.values.to_string(),
        ];
        if self.kv.values.block_size() > 1 || self.kv.values != Type::F16 {
            flags.extend(["-fa".to_owned(), "on".to_owned()]);
        }
        flags
    }
}
