//! The flags of `seeddelta-build`, as typed: every value checked by itself.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use builder::flags::{DenseFlags, FileFlags, RunFlags};
use builder::methods::seeddelta::Override;
use clap::{ArgGroup, Parser, ValueEnum};
use format::Role;
use format::seeddelta::{BaseSpec, BaseType};
use lab::forms::flags::MaterialFlags;
use program::LayerList;

/// Version of the program and of the llama.cpp whose ggml does the arithmetic.
static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  What would it bring? Nothing is written:
    seeddelta-build -i model.gguf --base lowrank:16 --delta-k 32 --dry-run
  Gate and up of layers 2 to 5, weighted by an importance matrix of llama-imatrix:
    seeddelta-build -i model.gguf -o coded.gguf --layers 2-5 --base lowrank:16 --imatrix imatrix.gguf
  Other parameters for some of them:
    seeddelta-build -i model.gguf -o coded.gguf --base lowrank:16 --override 0,1:up=circulant@64
  Whatever can be coded without loss on a text (runs the model many times):
    seeddelta-build -i model.gguf -o coded.gguf --policy auto --text eval.txt --calib-text calib.txt

Exit codes: 0 done, 1 error, 2 wrong usage, 130 stopped by SIGINT or SIGTERM (go on with --resume).";

/// Writes FFN weights of a GGUF model as a structured base plus a sparse delta.
///
/// Every selected matrix is replaced by a base W0 with few parameters and, for each row, the K largest
/// residuals. The result is a GGUF for the patched llama.cpp (flag --seeddelta). Until it is complete,
/// finished tensors are kept in OUT.seeddelta-work beside it.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
#[command(group = ArgGroup::new("material").args(["examples", "text"]))]
pub struct Cli {
    #[command(flatten)]
    pub files: FileFlags,

    /// Base: none, identity, diagonal, lowrank:R, circulant, block:B, or the sum of two of different kinds
    /// such as lowrank:8+diagonal [default: lowrank:16]
    #[arg(long, value_name = "BASE")]
    pub base: Option<BaseSpec>,

    /// Type of the base's parameters
    #[arg(long, value_name = "f16|f32", default_value_t = BaseType::F16)]
    pub base_type: BaseType,

    /// Give every row of the base a factor of its own; only identity and circulant gain from it
    #[arg(long)]
    pub row_scale: bool,

    /// Whether the largest residuals of each row are stored beside the base
    #[arg(long, value_enum, default_value_t = DeltaChoice::Coo)]
    pub delta: DeltaChoice,

    /// Residuals per row, 1 to the length of a row; with --imatrix those with the largest
    /// |residual| * sqrt(E[x^2])
    #[arg(long, value_name = "K", default_value_t = 32)]
    pub delta_k: usize,

    /// Other parameters for some layers and matrices, for instance 0,4-6:gate,up=circulant@64; without
    /// matrices for all of them; the last that fits a tensor counts; @0 means no delta. May be repeated
    #[arg(long = "override", value_name = "LAYERS[:TARGETS]=BASE@K")]
    pub overrides: Vec<Override>,

    /// Tensors and their parameters from a JSON file, instead of all flags that choose them; schema in
    /// docs/schema/seeddelta-policy.schema.json. Or auto: layers (of --layers) are coded in the order of what
    /// they cost alone, with --base, as long as the answers to --examples or --text stay; the policy found is
    /// kept as OUT.policy.json (./auto is a file of that name)
    #[arg(
        long,
        value_name = "FILE|auto",
        requires_if("auto", "material"),
        conflicts_with_all = ["delta", "delta_k", "overrides", "roles"]
    )]
    pub policy: Option<PolicySource>,

    /// Layers, from 0: a number, a range or a list such as 0,2,5-8 [default: all but those for multi-token
    /// prediction, which no text runs through]
    #[arg(long, value_name = "LIST")]
    pub layers: Option<LayerList>,

    /// Matrices: a list of gate, up, down [default: gate and up, where the model has them]
    #[arg(long = "targets", value_name = "LIST", value_delimiter = ',')]
    pub roles: Option<Vec<Role>>,

    /// Importance matrix of llama-imatrix (GGUF or .dat): base, delta and the recorded gap weigh the error of input
    /// i with its mean square E[x_i^2]
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,

    #[command(flatten)]
    pub dense: DenseFlags,
    #[command(flatten)]
    pub running: RunFlags,
    #[command(flatten, next_help_heading = "What --policy auto measures")]
    pub material: MaterialFlags,
}

/// The base unless another one is given.
pub const DEFAULT_BASE: &str = "lowrank:16";

/// The matrices unless others are given.
pub const DEFAULT_ROLES: [Role; 2] = [Role::Gate, Role::Up];

/// Where a policy comes from.
#[derive(Clone, Debug)]
pub enum PolicySource {
    /// A file.
    File(PathBuf),
    /// Runs of the model.
    Auto,
}

impl From<OsString> for PolicySource {
    fn from(text: OsString) -> Self {
        if text == "auto" { Self::Auto } else { Self::File(text.into()) }
    }
}

/// The sparse correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeltaChoice {
    /// The base alone.
    None,
    /// The K largest residuals of every row.
    Coo,
}
