//! The flags of `tiny-transformer`, as typed.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand};

static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  Everything:
    tiny-transformer data -o models/tiny
    tiny-transformer train -d models/tiny -o models/tiny/tiny.gguf
  Go on after an interruption, to the same bytes:
    tiny-transformer train -d models/tiny -o models/tiny/tiny.gguf --resume
  A model of other sizes that knows some English:
    tiny-transformer train --text text.txt -o text.gguf --layers 4 --embd 256 --heads 4 --length 128 --steps 1500

Exit codes: 0 done, 1 error, 2 wrong usage.";

/// A small llama model, trained on copying words, adding numbers and closing brackets.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write train.jsonl, validation.jsonl and test.jsonl, without overlap
    Data(Data),
    /// Train a model on the data, or on a text, and export it as GGUF F16 for llama.cpp
    Train(Train),
    /// Export the model of a checkpoint
    Export(Export),
    /// Score the model of a checkpoint on an example file: exact answers and perplexity per task
    Score(Score),
}

/// The data set.
#[derive(Debug, Args)]
pub struct Data {
    /// Folder to write to
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Seed of all examples
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Examples per task to learn from, at most
    #[arg(long, value_name = "N", default_value_t = lab::tiny::dataset::Sizes::default().train)]
    pub train: usize,
    /// Examples per task to watch
    #[arg(long, value_name = "N", default_value_t = lab::tiny::dataset::Sizes::default().validation)]
    pub validation: usize,
    /// Examples per task to measure with
    #[arg(long, value_name = "N", default_value_t = lab::tiny::dataset::Sizes::default().test)]
    pub test: usize,
}

/// A training.
#[derive(Debug, Args)]
pub struct Train {
    /// Folder of `tiny-transformer data`
    #[arg(short, long, value_name = "FOLDER", required_unless_present = "text")]
    pub data: Option<PathBuf>,
    /// Learn this plain text instead, byte by byte but for small letters and digits; nothing is scored
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub text: Option<PathBuf>,
    /// GGUF to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where the state is kept [default: OUTPUT.checkpoint]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Steps between checkpoints and scores
    #[arg(long, value_name = "STEPS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    pub every: u64,
    /// Stop after this many steps of this run, with a checkpoint and without a model
    #[arg(long, value_name = "STEPS")]
    pub stop_after: Option<u64>,
    #[command(flatten)]
    pub hyper: HyperparameterFlags,
}

/// Everything that decides the weights.
#[derive(Debug, Args)]
pub struct HyperparameterFlags {
    /// Layers
    #[arg(long, value_name = "N", default_value_t = defaults().config.n_layers)]
    pub layers: usize,
    /// Width of the hidden state
    #[arg(long, value_name = "N", default_value_t = defaults().config.n_embd)]
    pub embd: usize,
    /// Width of the FFN
    #[arg(long, value_name = "N", default_value_t = defaults().config.n_ff)]
    pub ff: usize,
    /// Experts of every layer, each with an FFN of width --ff [default: one FFN]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        requires = "used"
    )]
    pub experts: usize,
    /// Experts that a token uses
    #[arg(
        long,
        value_name = "K",
        default_value_t = 0,
        hide_default_value = true,
        requires = "experts"
    )]
    pub used: usize,
    /// Attention heads
    #[arg(long, value_name = "N", default_value_t = defaults().config.n_heads)]
    pub heads: usize,
    /// Steps
    #[arg(long, value_name = "N", default_value_t = defaults().steps)]
    pub steps: u64,
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = defaults().rows)]
    pub rows: usize,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = defaults().length)]
    pub length: usize,
    /// Highest rate of learning
    #[arg(long, value_name = "F", default_value_t = defaults().rate)]
    pub rate: f32,
    /// Seed of first parameters and batches
    #[arg(long, value_name = "N", default_value_t = defaults().seed)]
    pub seed: u64,
}

fn defaults() -> lab::tiny::train::Hyperparameters {
    lab::tiny::train::Hyperparameters::default()
}

/// An export.
#[derive(Debug, Args)]
pub struct Export {
    /// Checkpoint of a training
    #[arg(short, long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// GGUF to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// A score.
#[derive(Debug, Args)]
pub struct Score {
    /// Checkpoint of a training
    #[arg(short, long, value_name = "FILE")]
    pub checkpoint: PathBuf,
    /// Examples
    #[arg(short, long, value_name = "FILE")]
    pub data: PathBuf,
}
