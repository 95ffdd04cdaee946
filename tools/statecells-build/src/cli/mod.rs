//! The flags of `statecells-build`, as typed: every value checked by itself.

mod sections;

use std::path::PathBuf;
use std::sync::LazyLock;

use builder::flags::{DenseFlags, FileFlags, RunFlags};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser};
use dictionary::{DictType, Encoder, GlobalParams};
use format::{Role, Scheme};
use program::LayerList;
use program::flags::{not_negative, number, positive};

pub use sections::SectionsFlags;

/// Version of the program and of the llama.cpp whose ggml does the arithmetic.
static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

/// Defaults come from the codec, so that the help cannot differ from what happens.
static DEFAULTS: LazyLock<GlobalParams> = LazyLock::new(GlobalParams::default);

const EXAMPLES: &str = "\
Examples:
  What would it bring? Nothing is written:
    statecells-build -i model.gguf --dry-run
  Code all FFN matrices, fitted to what the model sees on a text that it writes itself:
    statecells-build -i model.gguf -o coded.gguf
  The same with a text such as the model will be used for, in about 3 bits per weight:
    statecells-build -i model.gguf -o coded.gguf -f text.txt --S 6
  40 % less than Q5_K_M takes, shared out by what each tensor needs:
    statecells-build -i model.gguf -o coded.gguf -f text.txt --target-saving 0.4
  Try three layers first, then grow the same file to those behind them:
    statecells-build -i model.gguf -o coded.gguf --layers 0-2
    statecells-build -i model.gguf -o coded.gguf --resume

Exit codes: 0 done, 1 error, 2 wrong usage, 130 stopped by SIGINT or SIGTERM (go on with --resume).";

/// Compresses the FFN weights of a GGUF model with learned dictionaries.
///
/// Every selected matrix (ffn_gate, ffn_up, ffn_down) is replaced by a dictionary of atoms and, for each of its
/// rows, the numbers of the atoms whose sums approximate it: one from each of S sections for every 8 inputs,
/// or k of M for the whole row. The result is a GGUF for the patched llama.cpp (flag --statecells). Until it
/// is complete, finished tensors are kept in OUT.statecells-work beside it.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten, next_help_heading = "Files")]
    pub files: FileFlags,
    #[command(flatten, next_help_heading = "Scheme")]
    pub scheme: SchemeFlags,
    #[command(flatten, next_help_heading = "Dictionary (all schemes but sections)")]
    pub dict: Dict,
    #[command(flatten, next_help_heading = "Scheme sections")]
    pub sections: SectionsFlags,
    #[command(flatten, next_help_heading = "Selection")]
    pub selection: SelectionFlags,
    #[command(flatten, next_help_heading = "What is fitted to")]
    pub text: TextFlags,
    #[command(flatten, next_help_heading = "Quality")]
    pub dense: DenseFlags,
    #[command(flatten, next_help_heading = "Quality")]
    pub eval: EvalFlags,
    #[command(flatten, next_help_heading = "Running")]
    pub running: RunFlags,
    /// Seed of all random choices; each tensor's own seed follows from it and the tensor's name
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Running")]
    pub seed: u64,
}

/// How rows are written as sums of atoms.
#[derive(Debug, Args)]
pub struct SchemeFlags {
    /// What is stored. Blocks of 8 inputs, each the sum of one of 16 atoms from each of S sections
    /// (sections). Or one dictionary over the whole input, and for a row the numbers of k atoms with
    /// their signs (sign), signs and one scale for the row (sign+row_scale), or one coefficient per atom
    /// (sign+vals): far worse at the same size
    #[arg(long, default_value_t = Scheme::Sections, value_parser = scheme_parser())]
    pub scheme: Scheme,

    /// Short for --scheme sign+vals
    #[arg(long, conflicts_with_all = ["scheme", "row_scale", "no_vals"])]
    pub vals: bool,

    /// No coefficients: short for --scheme sign+row_scale, or with --no-row-scale for --scheme sign
    #[arg(long, conflicts_with = "scheme")]
    pub no_vals: bool,

    /// Short for --scheme sign+row_scale
    #[arg(long, conflicts_with_all = ["scheme", "no_row_scale"])]
    pub row_scale: bool,

    /// No row scales: short for --scheme sign, or with --vals for --scheme sign+vals
    #[arg(long, conflicts_with = "scheme")]
    pub no_row_scale: bool,

    /// How the atoms of a row are chosen: the k largest |correlations| (topk), or one after the other,
    /// each the best given those before (omp: orthogonal matching pursuit; better and slower)
    #[arg(long, default_value_t = DEFAULTS.encoder, value_parser = encoder_parser())]
    pub encoder: Encoder,
}

/// Size and learning of the dictionary.
#[derive(Debug, Args)]
pub struct Dict {
    /// Atoms per dictionary, 1 to 32767 [default: outputs / 8 rounded to a power of two, at least 64]
    #[arg(long = "dict-M", value_name = "ATOMS")]
    pub dict_m: Option<usize>,

    /// The same for ffn_gate only
    #[arg(long = "dict-M-gate", value_name = "ATOMS")]
    pub dict_m_gate: Option<usize>,

    /// The same for ffn_up only
    #[arg(long = "dict-M-up", value_name = "ATOMS")]
    pub dict_m_up: Option<usize>,

    /// The same for ffn_down only
    #[arg(long = "dict-M-down", value_name = "ATOMS")]
    pub dict_m_down: Option<usize>,

    /// Atoms per row, 1 to M
    #[arg(long, value_name = "ATOMS", default_value_t = DEFAULTS.k)]
    pub dict_k: usize,

    /// The same for ffn_gate only
    #[arg(long, value_name = "ATOMS")]
    pub dict_k_gate: Option<usize>,

    /// The same for ffn_up only
    #[arg(long, value_name = "ATOMS")]
    pub dict_k_up: Option<usize>,

    /// The same for ffn_down only
    #[arg(long, value_name = "ATOMS")]
    pub dict_k_down: Option<usize>,

    /// Learning rate of Oja's rule, above 0, for rows scaled to a mean square norm of 1
    #[arg(long, value_name = "RATE", default_value_t = DEFAULTS.eta, value_parser = positive::<f32>)]
    pub dict_eta: f32,

    /// Passes of Oja's rule over the sampled rows
    #[arg(long, value_name = "PASSES", default_value_t = DEFAULTS.iters)]
    pub dict_iters: usize,

    /// Rounds, after the passes, of refitting the atoms by least squares and choosing the codes anew
    #[arg(long, value_name = "ROUNDS", default_value_t = DEFAULTS.refine)]
    pub dict_refine: usize,

    /// Rows of the matrix to learn from, at most; all rows are encoded in any case
    #[arg(long, value_name = "ROWS", default_value_t = DEFAULTS.max_samples)]
    pub dict_max_samples: usize,

    /// Type of the stored atoms
    #[arg(long, value_name = "TYPE", default_value_t = DEFAULTS.dict_type, value_parser = dict_type_parser())]
    pub dict_type: DictType,

    /// Lateral decorrelation between the winners of a row, 0 (none) to 1 (Oja's subspace rule)
    #[arg(long, value_name = "F", default_value_t = DEFAULTS.anti_hebb, value_parser = unit_interval)]
    pub anti_hebb: f32,
}

/// What is coded.
#[derive(Debug, Args)]
pub struct SelectionFlags {
    /// Layers, from 0: a number, a range or a list such as 0,2,5-8. Layers for multi-token prediction
    /// (the last ones, as many as nextn_predict_layers says) stay dense unless they are named here; no text
    /// runs through them, so that they are coded from their weights alone [default: all others]
    #[arg(long, value_name = "LIST")]
    pub layers: Option<LayerList>,

    /// Matrices: a list of gate, up, down [default: all that the model has]
    #[arg(long = "targets", value_name = "LIST", value_delimiter = ',')]
    pub roles: Option<Vec<Role>>,
}

/// What the codes are fitted to.
#[derive(Debug, Args)]
pub struct TextFlags {
    /// Fit to what the model sees on this text, in UTF-8, or .jsonl with one {"messages": [{"role", "content"}, ...]} per
    /// line; may be repeated [default for the scheme sections: a text that the model writes itself]. The calibration that
    /// is made of the text stays beside the output as OUT.calib.gguf, for the next build
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["calib", "imatrix", "no_calib"])]
    pub file: Vec<PathBuf>,

    /// Tokens of the text, its own or that of -f [default: 30 for each value of the longest input, at least 131072]
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["calib", "imatrix", "no_calib"])]
    pub tokens: Option<usize>,

    /// Calibration of this model by statecells-calib, or of an earlier build: the scheme sections fits the outputs on its
    /// activations, all others weigh inputs with their mean squares as with --imatrix. The recorded gap is then that on
    /// held-out activations
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix")]
    pub calib: Option<PathBuf>,

    /// Fit to the weights alone, without any text: a matter of minutes, and far worse
    #[arg(long, conflicts_with_all = ["calib", "imatrix"])]
    pub no_calib: bool,

    /// Importance matrix of llama-imatrix (GGUF or .dat): learning, encoding and the recorded gap weigh the error
    /// of input i with its mean square E[x_i^2]; reports get fields that end in _w
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,

    /// Learn and encode as if every E[x_i^2] were at least this share of their mean
    #[arg(long, value_name = "F", default_value_t = 0.001, value_parser = not_negative)]
    pub imatrix_eps: f32,

    /// Learn and encode with E[x_i^2] raised to this power; 0 is as without an imatrix. Gaps and other
    /// errors are always measured with E[x_i^2] itself
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = not_negative)]
    pub imatrix_power: f32,
}

/// What is measured besides.
#[derive(Debug, Args)]
pub struct EvalFlags {
    /// Also measure every gap on N random inputs, x_i normal with variance E[x_i^2] (1 without an
    /// imatrix): a check on the closed form, which is recorded and decides in any case; shown as gap_eval
    /// in the JSON report. 0: closed form only
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub eval_cols: usize,

    /// Also code every tensor for its weights alone and report that code's error on the calibration's
    /// activations: takes as long again
    #[arg(long, conflicts_with_all = ["no_calib", "imatrix"])]
    pub eval_plain: bool,
}

fn scheme_parser() -> impl TypedValueParser<Value = Scheme> {
    PossibleValuesParser::new(Scheme::ALL.iter().map(|s| s.as_str())).try_map(|name| name.parse())
}

fn encoder_parser() -> impl TypedValueParser<Value = Encoder> {
    let names = Encoder::ALL.iter().map(|e| e.as_str());
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn dict_type_parser() -> impl TypedValueParser<Value = DictType> {
    let names = DictType::ALL.iter().map(|t| t.as_str());
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

fn unit_interval(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
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
