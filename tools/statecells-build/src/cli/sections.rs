//! Flags of the scheme `sections`.

use std::path::PathBuf;
use std::sync::LazyLock;

use builder::methods::sections::{SHARED_BY, Weighing};
use clap::Args;
use numerics::Shrink;
use program::flags::{number, positive};
use sections::SectionsParams;
use whole_model::TuneParams;

/// Share of exact weights unless asked otherwise: it keeps the few that ruin `ffn_down`, for 0.05 bits a weight.
const OUTLIERS: f64 = 0.001;

/// Defaults come from the codec, so that the help cannot differ from what happens.
static SECTIONS: LazyLock<SectionsParams> = LazyLock::new(SectionsParams::default);
/// The same for tuning.
static TUNE: LazyLock<TuneParams> = LazyLock::new(TuneParams::default);

/// Size, learning and search of the scheme `sections`.
#[derive(Debug, Args)]
pub struct SectionsFlags {
    /// Sections of the dictionary, 1 to 16: a weight takes S/2 bits
    #[arg(
        long = "S",
        value_name = "SECTIONS",
        default_value_t = SECTIONS.sections,
        conflicts_with = "budget"
    )]
    pub sections: usize,

    /// Instead of --S: bits per weight of all tensors together, everything included. Each tensor gets the
    /// sections, 4 to 10, with which the sum of all tensors' errors (by token, on the hold-out of --calib;
    /// without --calib those of the weights) is least
    #[arg(long, value_name = "BITS", value_parser = positive::<f64>, group = "budget")]
    pub bpw: Option<f64>,

    /// The same with a size that is this share, below 1, less than Q5_K_M's types take for these tensors
    #[arg(long, value_name = "SHARE", value_parser = below_one, group = "budget")]
    pub target_saving: Option<f64>,

    /// Factors of single tensors' errors when sections are shared out, 1 for those left out: a JSON file such
    /// as {"blk.0.ffn_down": 2.5}. --measure-sensitivity measures them
    #[arg(long, value_name = "FILE", requires = "budget")]
    pub sensitivity: Option<PathBuf>,

    /// Instead of coding, measure for --sensitivity what an error in each matrix costs on this text, which should be
    /// neither that of the calibration nor one to evaluate on; -o names the JSON file. Every layer alone, and every kind
    /// of matrix in all layers, is coded coarsely and run beside the dense model
    #[arg(
        long,
        value_name = "TEXT",
        requires = "calib",
        conflicts_with_all = ["budget", "sequential", "tune_ffn", "tune", "resume", "layers", "roles", "report_json"]
    )]
    pub measure_sensitivity: Option<PathBuf>,

    /// Contexts of 512 tokens of the text of --measure-sensitivity, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 6,
        requires = "measure_sensitivity",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub sensitivity_contexts: u16,

    /// Partial sums that survive each section of the search, 1 to 64: better and slower
    #[arg(long, value_name = "SUMS", default_value_t = SECTIONS.beam)]
    pub beam: usize,

    /// Rounds of refitting atoms and row scales and searching the codes anew
    #[arg(long, value_name = "ROUNDS", default_value_t = SECTIONS.rounds)]
    pub rounds: usize,

    /// Times that every block of 8 inputs is searched anew with the errors of all others known; only with a calibration
    #[arg(long, value_name = "SWEEPS", default_value_t = SECTIONS.sweeps)]
    pub sweeps: usize,

    /// One dictionary for ffn_gate and ffn_up of a layer, so that the run time builds its tables once for both; the atoms are
    /// then not refitted to each of them
    #[arg(
        long,
        value_name = "MATRICES",
        value_parser = [SHARED_BY],
        conflicts_with_all = ["tune", "tune_ffn"]
    )]
    pub share_dict: Option<String>,

    /// Share of the weights, 0 to 0.1, that are kept exact beside the codes, 48 bits each: those that no
    /// sum of atoms reaches
    #[arg(long, value_name = "SHARE", default_value_t = OUTLIERS)]
    pub outliers: f64,

    /// What is added to the diagonal of a second moment, as a share of its mean, so that it can be
    /// inverted and small directions are not trusted too far
    #[arg(long, value_name = "SHARE", default_value_t = SECTIONS.damping, conflicts_with_all = ["no_calib", "imatrix"])]
    pub damping: f64,

    /// How far second moments are drawn towards inputs that tell nothing of each other, 0 to 1: auto chooses
    /// for each tensor the largest share that does about as well as any on the calibration's hold-out,
    /// since other texts than the calibration's forgive less
    #[arg(long, value_name = "auto|SHARE", default_value_t = Shrink::Auto, conflicts_with_all = ["no_calib", "imatrix"])]
    pub shrink: Shrink,

    /// Longest input whose second moment is used whole, in about 24 N^2 bytes of memory: 6.5 GB for
    /// 16384. Longer inputs are taken in spans of at most 4096, as if those were uncorrelated
    #[arg(long, value_name = "N", default_value_t = 16384, conflicts_with_all = ["no_calib", "imatrix"])]
    pub max_h_dim: usize,

    /// Run the model as coded so far every LAYERS layers and fit the next ones to what they will really see, so
    /// that they make up for the errors before them; 1 does so before every ffn_down as well and is by far the best.
    /// Errors and gaps are then against what each matrix should do there (after --tune against the source's
    /// weights). Takes about three forward passes of llama.cpp over the text, which is all that --calib
    /// needs to hold (statecells-calib --tokens-only), and 8 bytes on the disk per token and value of the hidden state.
    /// Such a file grows only behind what is finished. 0: fit to what the source model sees [default: 1 with a text of -f
    /// or of the model's own where llama.cpp can run single layers, 0 with --calib]
    #[arg(
        long,
        value_name = "LAYERS",
        conflicts_with_all = ["no_calib", "imatrix"]
    )]
    pub sequential: Option<u16>,

    /// Keep what --sequential sees of the source model as OUT.states beside the output (OUT without its extension): the next
    /// build on the same text, with another --S for example, does not run the source again. Takes 8 bytes per
    /// token, layer and value of the hidden state: 11 GB for 32768 tokens of a 1.5B model
    #[arg(long, conflicts_with_all = ["no_calib", "imatrix"])]
    pub keep_states: bool,

    /// How much each token of the calibration's text counts in what --sequential fits to; curvature only for
    /// architectures of --tune
    #[arg(
        long,
        value_name = "HOW",
        default_value_t = Weighing::Equal,
        conflicts_with_all = ["no_calib", "imatrix"]
    )]
    pub token_weights: Weighing,

    /// Behind the last tensor, tune the atoms, row scales and exact weights (no codes) of each FFN together, layer by layer
    /// in so many steps, so that what it gives comes nearest to what brings the hidden state back to where it was. Any
    /// architecture whose layers llama.cpp can run alone. Takes about three forward passes of llama.cpp over the
    /// calibration's text besides the steps, and 8 bytes on the disk per token and value of the hidden state
    #[arg(
        long,
        value_name = "STEPS",
        conflicts_with_all = ["no_calib", "imatrix"],
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub tune_ffn: Option<u32>,

    /// Contexts of the calibration's text per step of --tune-ffn
    #[arg(
        long,
        value_name = "N",
        default_value_t = TUNE.contexts as u16,
        requires = "tune_ffn",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub tune_ffn_contexts: u16,

    /// Change of a value in the first step of --tune-ffn, as a share of its size
    #[arg(long, value_name = "SHARE", default_value_t = TUNE.rate, value_parser = positive::<f32>, requires = "tune_ffn")]
    pub tune_ffn_rate: f32,

    /// At the end, tune atoms, row scales and exact weights (no codes) in so many steps against the source
    /// model's own outputs on the calibration's text. Layers are read one by one, so that memory holds one in F32 and
    /// the hidden states of a step. Dense models of llama, qwen2, qwen3, gemma, gemma2, gemma3, phi3, granite, olmo2 and
    /// smollm3. What is coded is kept if it fails: --resume goes on without it too
    #[arg(
        long,
        value_name = "STEPS",
        conflicts_with_all = ["no_calib", "imatrix"],
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub tune: Option<u32>,

    /// Contexts of the calibration's text per step of --tune
    #[arg(
        long,
        value_name = "N",
        default_value_t = TUNE.contexts as u16,
        requires = "tune",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub tune_contexts: u16,

    /// Change of a value in the first step of --tune, as a share of its size
    #[arg(long, value_name = "SHARE", default_value_t = TUNE.rate, value_parser = positive::<f32>, requires = "tune")]
    pub tune_rate: f32,
}

fn below_one(text: &str) -> Result<f64, String> {
    number(text, "a number below 1", |n| n < 1.0)
}
