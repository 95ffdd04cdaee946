//! The flags of `statecells-calib`.

use std::path::PathBuf;
use std::sync::LazyLock;

use builder::calibrate::{CalibrationJob, DEFAULT_CTX, DEFAULT_HOLDOUT, DEFAULT_SAMPLES};
use calibration::{DEFAULT_MAX_EXPERT_MIB, DEFAULT_MAX_MOMENT_DIM};
use clap::Parser;
use clap_complete::Shell;
use program::LayerList;
use program::flags::n_threads;

/// Version of the program and of the llama.cpp that runs the model.
static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  Collect on a text:
    statecells-calib -m model.gguf -f text.txt -o calib.gguf
  Collect on what the model writes itself, if no text is at hand:
    statecells-calib -m model.gguf -o calib.gguf
  Prose and conversations, first layers only:
    statecells-calib -m model.gguf -f prose.txt -f chats.jsonl -o calib.gguf --layers 0-7
  Add another text to it:
    statecells-calib -m model.gguf -f more.txt -o calib.gguf --resume
  More text in seconds, for statecells-build --sequential, which runs the model itself:
    statecells-calib -m model.gguf -f text.txt -o calib.gguf --tokens 393216 --tokens-only

One context in ten is held out: it is never used to fit, only to measure.

Exit codes: 0 done, 1 error, 2 wrong usage, 130 stopped by SIGINT or SIGTERM (nothing is written).";

/// Collects what the FFN matrices of a GGUF model see on real text.
///
/// The model runs on contexts spread evenly over the text; for the input of every FFN matrix (ffn_gate and
/// ffn_up share theirs) the second moment H = sum x x^T is summed up, or inputs are sampled where H would be
/// too large. The file is for statecells-build --calib with the same model.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Model to run: a GGUF, or the first of the files that it is in (NAME-00001-of-0000N.gguf)
    #[arg(short, long, value_name = "FILE", required_unless_present = "completions")]
    pub model: Option<PathBuf>,

    /// Text in UTF-8, or .jsonl with one {"messages": [{"role", "content"}, ...]} per line; may be repeated [default: a
    /// text that the model writes itself, which takes longer than to read one]
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,

    /// File to write; it appears under this name only when it is complete
    #[arg(short, long, value_name = "FILE", required_unless_present = "completions")]
    pub output: Option<PathBuf>,

    /// Read all files as conversations, whatever they are called
    #[arg(long, requires = "file")]
    pub chat: bool,

    /// Tokens to run, a tenth of which is held out; fewer if the text is shorter [default: 30 for each value of the longest
    /// input, at least 131072]
    #[arg(long, value_name = "TOKENS")]
    pub tokens: Option<usize>,

    /// Tokens per context
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_CTX)]
    pub ctx: usize,

    /// Write down the contexts without running the model on them. Such a file is enough for statecells-build
    /// --sequential without a budget (--bpw, --target-saving), which sees what it needs itself; only the gaps that
    /// are recorded after --tune are then those of the weights
    #[arg(
        long,
        conflicts_with_all = ["max_samples", "max_holdout", "max_h_dim", "max_expert_mib", "layers", "time_plain"]
    )]
    pub tokens_only: bool,

    /// Inputs to keep where H is not formed, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_SAMPLES,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub max_samples: u64,

    /// Held-out inputs to keep for every matrix, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_HOLDOUT,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub max_holdout: u64,

    /// Longest input for which H is formed
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_MOMENT_DIM)]
    pub max_h_dim: usize,

    /// Memory for an H of every expert, in all layers together. Where that is not enough the mean squares of what each has
    /// seen are kept, beside the H of all of them
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MAX_EXPERT_MIB)]
    pub max_expert_mib: usize,

    /// Layers, from 0: a number, a range or a list such as 0,2,5-8 [default: all but those for multi-token
    /// prediction, which no text runs through]
    #[arg(long, value_name = "LIST")]
    pub layers: Option<LayerList>,

    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,

    /// Seed that chooses which inputs are kept, and what the model writes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Also run N of the contexts without watching, to compare the time
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub time_plain: usize,

    /// Add contexts to an existing output, of -f or of what the model goes on to write: --tokens says how many. What is
    /// there stays, and samples are kept of both by their lengths. --ctx, --seed, --max-h-dim, --max-expert-mib and --layers must be
    /// repeated
    #[arg(long, conflicts_with_all = ["force", "time_plain"])]
    pub resume: bool,

    /// Replace an existing output
    #[arg(long)]
    pub force: bool,

    /// Print completions for a shell and stop
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<Shell>,
}

impl Cli {
    /// The calibration that is asked for.
    ///
    /// # Panics
    /// If only completions are asked for.
    pub fn job(self) -> CalibrationJob {
        CalibrationJob {
            tool: (crate::NAME, env!("CARGO_PKG_VERSION")),
            model: self.model.expect("required by clap"),
            file: self.file,
            output: self.output.expect("required by clap"),
            chat: self.chat,
            tokens: self.tokens,
            ctx: self.ctx,
            tokens_only: self.tokens_only,
            max_samples: self.max_samples,
            max_holdout: self.max_holdout,
            max_h_dim: self.max_h_dim,
            max_expert_mib: self.max_expert_mib,
            layers: self.layers,
            n_threads: n_threads(self.threads),
            seed: self.seed,
            time_plain: self.time_plain,
            force: self.force,
            resume: self.resume,
        }
    }
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
