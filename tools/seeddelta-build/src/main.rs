//! `seeddelta-build`: writes the FFN weights of a GGUF model as a structured base plus a sparse delta.

mod cli;
mod config;
mod policy;
mod search;

use std::process::ExitCode;

use builder::{Error, flags};
use clap::CommandFactory;

use crate::cli::Cli;

/// The program's name, as it starts messages and records.
const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let cli: Cli = flags::parse();
    if let Some(shell) = cli.running.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let is_dry_run = cli.running.dry_run;
    if let Some(decoding) = cli.files.decode_run(NAME, &cli.running) {
        let done = if is_dry_run { decoding.check() } else { decoding.run() };
        return program::conclude(NAME, done.map(|()| ExitCode::SUCCESS), Error::is_stop);
    }
    let done = config::job(&cli).and_then(|job| if is_dry_run { job.dry_run() } else { job.run() });
    program::conclude(NAME, done.map(|()| ExitCode::SUCCESS), Error::is_stop)
}
