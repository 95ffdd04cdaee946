//! The flags of `statecells-eval`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Parser, ValueHint};
use clap_complete::Shell;
use evaluation::qa::Pack;
use evaluation::{Options, Part};
use ggml::Type;
use ggml::quant_mix::QuantMix;
use inspect::KvTypes;
use program::flags::n_threads;

use crate::NAME;

static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  statecells-eval --base model.gguf --sc coded.gguf --text text.txt --outdir results
  statecells-eval --base model.gguf --sc coded.gguf --text text.txt --outdir results --resume --against Q5_K_M
  statecells-eval --base model.gguf --sc coded.gguf --text text.txt --outdir results -ctk q8_0 -ctv q8_0
  statecells-eval --base model.gguf --sc coded.gguf --text text.txt --imatrix imatrix.gguf --against IQ3_XXS,Q3_K_M
  statecells-eval --page results/report.json
  statecells-eval --compare s6/report.json s7/report.json --outdir sizes

Rules, all against the base with its FFN matrices in the types of Q5_K_M: FFN at least 30 % smaller,
generation and prompt at least 1.10x as fast, perplexity at most 2 % higher. Aims beyond (50 %, 1.20x)
are shown and do not decide. What --skip leaves out does not decide either. Of models that give no logits
for the next token, such as embedding models, quality is not measured, and the verdict stays open (exit code 1).

Exit codes: 0 all rules passed, 1 error (also a measurement that failed), 2 wrong usage, 3 a rule failed,
130 interrupted.";

/// Compares a compressed model with its base and with other types: quality, speed, memory, verdict.
///
/// Writes report.json, report.html and the logs of llama.cpp's programs to --outdir.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Dense GGUF that the compressed file was made from; of one in several files the first, as for --sc
    #[arg(long, value_name = "FILE", required_unless_present_any = ["completions", "page", "compare"], value_hint = ValueHint::FilePath)]
    base: Option<PathBuf>,

    /// Compressed GGUF, by statecells-build or seeddelta-build; it runs with the flags that its schemes need
    #[arg(long, value_name = "FILE", required_unless_present_any = ["completions", "page", "compare"], value_hint = ValueHint::FilePath)]
    sc: Option<PathBuf>,

    /// Text for perplexity and divergence; not the one that was calibrated on
    #[arg(long, value_name = "FILE", required_unless_present_any = ["completions", "page", "compare"], value_hint = ValueHint::FilePath)]
    text: Option<PathBuf>,

    /// Folder for reports and logs, made if needed
    #[arg(long, value_name = "DIR", default_value = "statecells-eval")]
    pub outdir: PathBuf,

    /// Types that the base is requantized to, as llama-quantize calls them. The FFN of Q5_K_M is always measured
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "Q5_K_M,Q4_K_M,Q3_K_M"
    )]
    against: Vec<QuantMix>,

    /// Importance matrix by llama-imatrix, for the requantized files: of the tokens that --sc was fitted to, for a fair
    /// comparison. IQ2 types and IQ3_XXS need one [default: the mean squares in --calib, if it holds activations]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    imatrix: Option<PathBuf>,

    /// Prompts with checkable answers, JSON [default: 36 built-in ones]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    prompts: Option<PathBuf>,

    /// Threads of every program [default: one per core]
    #[arg(short = 't', long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Tokens per chunk of text
    #[arg(short = 'c', long, value_name = "N", default_value = "512", value_parser = n_ctx)]
    ctx: usize,

    /// Chunks of text, at most
    #[arg(long, value_name = "N", default_value = "32")]
    chunks: NonZeroUsize,

    /// Type of the keys in the KV cache; -ctk works too
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = KvTypes::parse)]
    ctk: Type,

    /// Type of the values in the KV cache; -ctv works too
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = KvTypes::parse)]
    ctv: Type,

    /// Rounds of the speed measurement, all files in turn
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,

    /// Tokens of its prompt
    #[arg(long, value_name = "N", default_value = "256")]
    prompt_tokens: NonZeroUsize,

    /// Tokens that it generates
    #[arg(long, value_name = "N", default_value = "64")]
    generation_tokens: NonZeroUsize,

    /// What to leave out: speed, qa (prompts), whole (whole requantized files)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    skip: Vec<Part>,

    /// Use finished measurements of the same inputs and arguments again
    #[arg(long)]
    resume: bool,

    /// Folder for finished measurements and requantized files, shared by several evaluations, which use them
    /// again [default: cache in --outdir]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Keep the requantized files and the base's logits
    #[arg(long)]
    keep_variants: bool,

    /// Calibration that --sc was made with, to compare the texts [default: the fingerprint in --sc], and as importance of the
    /// FFN where it holds activations and there is no --imatrix
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    calib: Option<PathBuf>,

    /// Text that --sc was calibrated on, to compare the texts
    #[arg(long, value_name = "FILE", conflicts_with = "calib", value_hint = ValueHint::FilePath)]
    calib_text: Vec<PathBuf>,

    /// Folder with llama.cpp's programs [default: where this program is]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Only make report.html anew beside this report.json
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub page: Option<PathBuf>,

    /// Only put finished evaluations of one base and text side by side: comparison.html and pictures in --outdir
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["base", "sc", "text"], value_hint = ValueHint::FilePath)]
    pub compare: Vec<PathBuf>,

    /// Print completions for a shell and stop
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<Shell>,
}

impl Cli {
    /// Parses the command line. `-ctk` and `-ctv` are taken as llama.cpp takes them.
    pub fn from_args() -> Self {
        Self::parse_from(std::env::args_os().map(|arg| match arg.to_str() {
            Some("-ctk") => OsString::from("--ctk"),
            Some("-ctv") => OsString::from("--ctv"),
            _ => arg,
        }))
    }

    /// What is asked for.
    ///
    /// # Errors
    /// For prompts that cannot be read.
    pub fn options(self) -> anyhow::Result<Options> {
        let given = "clap demands it";
        Ok(Options {
            base: self.base.expect(given),
            coded: self.sc.expect(given),
            text: self.text.expect(given),
            n_threads: n_threads(self.threads),
            n_ctx: self.ctx,
            chunks: self.chunks.get(),
            outdir: self.outdir,
            cache: self.cache,
            against: self.against,
            imatrix: self.imatrix,
            pack: Pack::read(self.prompts.as_deref())?,
            kv: KvTypes { keys: self.ctk, values: self.ctv },
            rounds: self.rounds.get(),
            prompt_tokens: self.prompt_tokens.get(),
            generation_tokens: self.generation_tokens.get(),
            skip: self.skip,
            resume: self.resume,
            keep_variants: self.keep_variants,
            calib: self.calib,
            calib_text: self.calib_text,
            bin_dir: self.bin_dir.unwrap_or_else(own_folder),
            tool: NAME.to_owned(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        })
    }
}

/// The folder of this program.
fn own_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().map_or_else(PathBuf::new, PathBuf::from)
}

/// llama-perplexity rates the second half of a chunk, and stores logits of at least one token.
fn n_ctx(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|e| format!("{e}"))?;
    if n >= 16 { Ok(n) } else { Err("use at least 16".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
