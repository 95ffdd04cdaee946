//! The flags of `statecells-bench`, as typed: every value checked by itself.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;
use dictionary::GlobalParams;
use format::Scheme;
use format::sections::MAX_SECTIONS;
use ggml::Type;

/// Version of the program and of the llama.cpp whose ggml it measures.
static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

/// Defaults come from the codec, so that the help cannot differ from what the builder does.
static DEFAULTS: LazyLock<GlobalParams> = LazyLock::new(GlobalParams::default);

const ABOUT_METHOD: &str = "\
How it measures: every contender holds so many copies of its matrix that a pass over all of them reads \
memory, not cache. The passes alternate (ours, type, type, ..., ours, type, ...) for all rounds, so that \
whatever else the machine does meets all alike; medians over the rounds are compared. A pass is one ggml \
graph on ggml's own thread pool. The coded matrix runs in it as in the patched llama.cpp: by the same \
functions of the hook, called by the same threads, with every step that a token costs (rounding guard and \
projection, or building the tables) in the time. A type that llama.cpp repacks at load for this machine \
is measured in both layouts, and compared in the faster one. The line below the table says which instructions \
and which product of ours ran. STATECELLS_ISA (scalar, avx2, avxvnni, avx512, avx512vnni, avx512vbmi, neon, \
neondot, neoni8mm) chooses the instructions, STATECELLS_BATCH (lookup, decode) the product of sections for all \
batches. With one token a plain sum over as many bytes, by as many threads, runs in turns with the others: \
what memory delivers, and the share of it that our matrix is read with.

Weights, codes and inputs are random: the speed does not depend on them.

Examples:
  One token, and batches of up to 512, at 3 bits per weight:
    statecells-bench --rows 4096 --cols 4096
    statecells-bench --rows 4096 --cols 4096 --batch 1,8,16,32,64,512
  The gate of Qwen3-30B-A3B, 8 of 128 experts for every token:
    statecells-bench --rows 768 --cols 2048 --experts 128 --used 8 --batch 1,512
  A global dictionary at the size of a 24B model's ffn_gate:
    statecells-bench --rows 32768 --cols 5120 --scheme sign+row_scale --dict-M 4096 --dict-k 32

Exit codes: 0 done, 1 error, 2 wrong usage.";

/// Measures matrix products of the run-time kernels against ggml's own types.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = ABOUT_METHOD, max_term_width = 100)]
pub struct Cli {
    /// Rows of the matrix: outputs
    #[arg(long, value_name = "N", required_unless_present = "completions", value_parser = count())]
    pub rows: Option<u32>,

    /// Columns of the matrix: inputs
    #[arg(long, value_name = "N", required_unless_present = "completions", value_parser = count())]
    pub cols: Option<u32>,

    /// Experts that have such a matrix each, coded with one dictionary; the products are those with the experts that a
    /// token uses
    #[arg(long, value_name = "N", requires = "used", value_parser = count())]
    pub experts: Option<u32>,

    /// Experts of a token
    #[arg(long, value_name = "K", requires = "experts", value_parser = count())]
    pub used: Option<u32>,

    /// Columns of activations multiplied at once: tokens; a list such as 1,8,64 is measured one after the other
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "1",
        value_parser = count()
    )]
    pub batch: Vec<u32>,

    /// Threads that work on each product
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=512)
    )]
    pub threads: u16,

    /// How our matrix is coded
    #[arg(long, default_value_t = Scheme::Sections, value_parser = scheme_parser())]
    pub scheme: Scheme,

    /// Bits per weight of the codes of scheme sections: half the number of sections, a multiple of 0.5
    /// from 0.5 to 8 [default: 3]
    #[arg(long = "bpw", value_name = "BITS", value_parser = sections)]
    pub sections: Option<usize>,

    /// Share of the weights that scheme sections keeps exact beside the codes, 0 to 0.1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub outliers: Option<f64>,

    /// Atoms of the one dictionary of the schemes that begin with sign, 1 to 32767 [default: rows / 8
    /// rounded to a power of two, at least 64]
    #[arg(long = "dict-M", value_name = "ATOMS")]
    pub dict_m: Option<usize>,

    #[arg(long, value_name = "ATOMS", help = dict_k_help())]
    pub dict_k: Option<usize>,

    /// Types of ggml to compare with, comma separated, such as q5_K,q4_0,f16
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "q5_K,q4_K,q3_K",
        value_parser = type_parser
    )]
    pub against: Vec<Type>,

    /// Rounds; in each, every contender multiplies with all its copies
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = count())]
    pub rounds: u32,

    /// Memory that the copies of a matrix fill at least, in MiB, for each contender; 0: one copy,
    /// which then may stay in the cache [default: 4 times the last-level cache]
    #[arg(long, value_name = "MIB")]
    pub cold_mib: Option<u32>,

    /// Also write the results as JSON; several batches as an array
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Print completions for a shell and stop
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<Shell>,
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

fn scheme_parser() -> impl TypedValueParser<Value = Scheme> {
    let names = Scheme::ALL.iter().map(|s| s.as_str());
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Sections of so many bits per weight.
fn sections(text: &str) -> Result<usize, String> {
    let sections = text.parse::<f64>().map(|bpw| bpw * 2.0);
    let fits = |n: &f64| n.fract() == 0.0 && (1.0..=MAX_SECTIONS as f64).contains(n);
    match sections.ok().filter(fits) {
        Some(n) => Ok(n as usize),
        None => Err(format!("use a multiple of 0.5 from 0.5 to {}", MAX_SECTIONS / 2)),
    }
}

fn dict_k_help() -> String {
    format!("Atoms per row of the same schemes, 1 to M [default: {}]", DEFAULTS.k)
}

fn type_parser(name: &str) -> Result<Type, String> {
    let known = Type::from_name(name).filter(|ty| ty.has_product());
    known.ok_or_else(|| {
        let names: Vec<_> = Type::all().filter(|ty| ty.has_product()).map(Type::name).collect();
        format!("use types with a product on the CPU: {}", names.join(", "))
    })
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
