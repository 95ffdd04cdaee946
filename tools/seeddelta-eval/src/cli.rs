//! The flags of `seeddelta-eval`, as typed.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use seeddelta_lab::plan::{Entry, Sweep};
use serde::Serialize;

static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  The tiny transformer, all runs:
    seeddelta-eval -m models/tiny/tiny.gguf --examples models/tiny -o out
  Any model of the llama kind on plain text, few runs:
    seeddelta-eval -m model.gguf --text eval.txt --calib-text calib.txt --short -o out

Exit codes: 0 done, 1 error, 2 wrong usage, 3 the strict policy collapsed.";

/// Tries many SeedDelta forms of a model: single layers (B2), pairs and more (B3), interleaved sets (B4), a
/// strict policy (B5), sweeps over K, bases and ffn_down. Writes report.json, report.html and
/// policy.auto.json; docs/results/seeddelta.md explains them.
#[derive(Debug, Parser, Serialize)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Dense model
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,

    /// Folder of `tiny-transformer data`: measure answers of test.jsonl, calibrate on validation.jsonl
    #[arg(long, value_name = "FOLDER", required_unless_present = "text", conflicts_with = "text")]
    pub examples: Option<PathBuf>,

    /// Text to measure on
    #[arg(long, value_name = "FILE", requires = "calib_text")]
    pub text: Option<PathBuf>,

    /// Text to foretell from; another one than --text
    #[arg(long, value_name = "FILE", requires = "text")]
    pub calib_text: Option<PathBuf>,

    /// Folder to write to
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,

    /// seeddelta-build [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub builder: Option<PathBuf>,

    /// Base of the runs over layers
    #[arg(long, value_name = "BASE", default_value = "lowrank:16")]
    pub base: String,

    /// Residuals per row of the runs over layers
    #[arg(long, value_name = "K", default_value_t = 16)]
    pub delta_k: usize,

    /// Six layers and few forms
    #[arg(long)]
    pub short: bool,

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

    /// Threads
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    #[serde(skip)]
    pub threads: u16,
}

impl Cli {
    /// The sweep over a model of `n_layers`.
    pub fn sweep(&self, n_layers: usize) -> Sweep {
        let main = Entry { base: self.base.clone(), delta_k: self.delta_k };
        Sweep::new(n_layers, main, self.short)
    }
}
