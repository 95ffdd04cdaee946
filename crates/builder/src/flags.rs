//! Flags that every build program has, as clap reads them.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, ValueEnum};
use clap_complete::Shell;
use ggml::Type;
use program::flags::{n_threads, not_negative};

use crate::{DecodeRun, Existing};

/// What is read and written.
#[derive(Debug, Args)]
pub struct FileFlags {
    /// Source model: a GGUF, or the first of the files that it is in (NAME-00001-of-0000N.gguf); weights of
    /// any type that ggml converts to F32
    #[arg(short, long, value_name = "FILE", required_unless_present = "completions")]
    pub input: Option<PathBuf>,

    /// File to write; it appears under this name only when it is complete
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present_any = ["dry_run", "completions", "decode"]
    )]
    pub output: Option<PathBuf>,

    /// Write the dense model that the coded file of -i stands for instead, for programs that know no codes
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub decode: Option<PathBuf>,

    /// Type of the matrices that --decode writes, one that needs no importance matrix: f16, f32, q8_0, q5_K, ...
    #[arg(long, value_name = "TYPE", default_value = "f16", requires = "decode", value_parser = dense_type)]
    pub decode_type: Type,

    /// Also write the report as JSON; schema in docs/schema/build-report.schema.json
    #[arg(long, value_name = "FILE")]
    pub report_json: Option<PathBuf>,
}

impl FileFlags {
    /// The decoding that is asked for in place of a build, if one is.
    ///
    /// # Panics
    /// If there is no input.
    #[must_use]
    pub fn decode_run(&self, tool: &'static str, running: &RunFlags) -> Option<DecodeRun> {
        let output = self.decode.clone()?;
        Some(DecodeRun {
            tool,
            input: self.input.clone().expect("clap demands it"),
            output,
            ty: self.decode_type,
            replaces: running.force,
            n_threads: running.n_threads(),
        })
    }

    /// The files that will be written, with their flags.
    #[must_use]
    pub fn written(&self) -> Vec<(&'static str, &Path)> {
        let outputs = [("-o", &self.output), ("--report-json", &self.report_json)];
        outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).collect()
    }
}

/// What happens to dense weights.
#[derive(Debug, Args)]
pub struct DenseFlags {
    /// Keep the dense weight of a tensor whose gap is larger than this; the gap is
    /// sqrt(E|(W - W^) x|^2 / E|W x|^2), 0 exact, 1 as bad as zeros [default: no limit]
    #[arg(long, value_name = "F", value_parser = not_negative)]
    pub gap_tol: Option<f32>,

    /// Whether the dense weight of a coded tensor stays in the file (for llama.cpp's --statecells-gap and
    /// for running without the codes)
    #[arg(long, value_enum, default_value_t = DenseChoice::Drop)]
    pub dense: DenseChoice,
}

/// Dense weights of coded tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DenseChoice {
    /// The sidecars replace it.
    Drop,
    /// It stays beside the sidecars.
    Keep,
}

/// How the work is done; nothing here changes the bytes of the output.
#[derive(Debug, Args)]
pub struct RunFlags {
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,

    /// Go on with a killed or stopped run, or add layers and matrices to a finished output: what is
    /// finished is not done again, and the result is the same as that of one uninterrupted run. Flags must be
    /// repeated; those of a step that comes after all tensors and is not done yet may be left out or changed
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,

    /// Write finished tensors to disk for good after every N tensors
    #[arg(
        long,
        value_name = "TENSORS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub checkpoint_every: u32,

    /// Replace an existing output and work folder
    #[arg(long)]
    pub force: bool,

    /// Show exact sizes per tensor and in total, against the source and against Q5_K_M, and stop. Whatever a
    /// build would refuse at its start is refused
    #[arg(long)]
    pub dry_run: bool,

    /// Print completions for a shell and stop
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<Shell>,
}

impl RunFlags {
    /// What to do with an output and a work folder that are already there.
    #[must_use]
    pub fn existing(&self) -> Existing {
        match (self.resume, self.force) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Replace,
            _ => Existing::Refuse,
        }
    }

    /// Number of threads.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        n_threads(self.threads)
    }
}

/// Flags that --decode goes with: all others are about coding.
const WITH_DECODE: [&str; 6] = ["input", "decode", "decode_type", "threads", "force", "dry_run"];

/// The flags of a build program as typed. A wrong use ends the program, as in [`clap::Parser::parse`].
#[must_use]
pub fn parse<C: CommandFactory + FromArgMatches>() -> C {
    let mut command = C::command();
    let matches = command.get_matches_mut();
    if let Some(flag) = beside_decode(&command, &matches) {
        let message = format!("{flag} means nothing beside --decode: leave it out");
        command.error(ErrorKind::ArgumentConflict, message).exit();
    }
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// The flag that was given beside --decode and means nothing there, if there is one.
fn beside_decode(command: &Command, matches: &ArgMatches) -> Option<String> {
    if !matches.contains_id("decode") {
        return None;
    }
    let given = |arg: &&clap::Arg| {
        let id = arg.get_id().as_str();
        let is_typed = matches.value_source(id) == Some(ValueSource::CommandLine);
        is_typed && !WITH_DECODE.contains(&id)
    };
    let name = |arg: &clap::Arg| arg.get_long().map(|long| format!("--{long}"));
    command.get_arguments().find(given).and_then(name)
}

/// A type that matrices can be quantized to as they are.
fn dense_type(text: &str) -> Result<Type, String> {
    let ty = Type::all().find(|ty| ty.name().eq_ignore_ascii_case(text));
    match ty.filter(|ty| ty.is_quantizable()) {
        Some(ty) if ty.needs_importance() => {
            Err(format!("{ty} needs an importance matrix: decode to f16, then use llama-quantize"))
        }
        Some(ty) => Ok(ty),
        None => Err("use a type of ggml, such as f16, f32, q8_0 or q5_K".to_owned()),
    }
}
