//! The flags of `seeddelta-eval`, as typed.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgGroup, Parser};
use lab::forms::bench::Setup;
use lab::forms::flags::MaterialFlags;
use lab::forms::plan::{Entry, Sweep};
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
#[command(group = ArgGroup::new("material").args(["examples", "text"]).required(true))]
pub struct Cli {
    /// Dense model
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,

    #[command(flatten)]
    #[serde(flatten)]
    pub material: MaterialFlags,

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
    #[arg(long, value_name = "K", default_value_t = lab::forms::auto::SINGLE_K)]
    pub delta_k: usize,

    /// Six layers and few forms
    #[arg(long)]
    pub short: bool,

    /// Threads
    #[arg(short, long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    #[serde(skip)]
    pub threads: u16,
}

impl Cli {
    /// Where everything is.
    ///
    /// # Errors
    /// If this program's own path is not to be had.
    pub fn setup(&self) -> std::io::Result<Setup> {
        let builder = match &self.builder {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("seeddelta-build"),
        };
        let (model, folder) = (self.model.clone(), self.output.clone());
        Ok(Setup { model, folder, builder, threads: self.threads })
    }

    /// The sweep over a model of `n_layers`.
    pub fn sweep(&self, n_layers: usize) -> Sweep {
        let main = Entry { base: self.base.clone(), delta_k: self.delta_k };
        Sweep::new(n_layers, main, self.short)
    }
}
