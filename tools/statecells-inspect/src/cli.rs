//! The flags of `statecells-inspect`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use clap_complete::Shell;
use format::Role;
use ggml::Type;
use inspect::KvTypes;
use program::LayerList;

static VERSION: LazyLock<String> = LazyLock::new(|| ggml::version_line(env!("CARGO_PKG_VERSION")));

const EXAMPLES: &str = "\
Examples:
  statecells-inspect coded.gguf
  statecells-inspect coded.gguf --compare model.gguf --targets gate,up
  statecells-inspect model.gguf --ctx 32768 -ctk q8_0 -ctv q8_0
  statecells-inspect coded.gguf --json | jq .totals

Exit codes: 0 done, 1 error, 2 wrong usage.";

/// Shows what a GGUF holds and needs: its FFN matrices by tensor, totals, record, memory.
///
/// Works on coded and on plain files. Sizes are in bytes. Only metadata is read, so it takes no time.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// GGUF file to look at, or the first of the files that a model is in (NAME-00001-of-0000N.gguf)
    #[arg(value_name = "FILE", required_unless_present = "completions")]
    pub file: Option<PathBuf>,

    /// Show a second file beside it, tensor by tensor
    #[arg(long, value_name = "OTHER")]
    pub compare: Option<PathBuf>,

    /// JSON instead of tables; schema in docs/schema/inspection.schema.json
    #[arg(long)]
    pub json: bool,

    /// Layers to list, from 0: a number, a range or a list such as 0,2,5-8 [default: all]
    #[arg(long, value_name = "LIST")]
    pub layers: Option<LayerList>,

    /// Matrices to list: gate, up, down [default: all]
    #[arg(long = "targets", value_name = "LIST", value_delimiter = ',')]
    pub roles: Option<Vec<Role>>,

    /// Context for the KV cache [default: the longest that the model is made for]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub ctx: Option<u64>,

    /// Type of the keys in the KV cache; -ctk works too
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = KvTypes::parse)]
    pub ctk: Type,

    /// Type of the values in the KV cache; -ctv works too
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = KvTypes::parse)]
    pub ctv: Type,

    /// Print completions for a shell and stop
    #[arg(long, value_name = "SHELL")]
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
