//! `statecells-build`: compresses the FFN weights of a GGUF model with learned dictionaries.

mod cli;
mod config;

use std::process::ExitCode;

use builder::methods::sections::Weighing;
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
    if let Err(usage) = config::check(&cli) {
        usage.exit();
    }
    let flags = &cli.sections;
    let has_gradients = flags.tune.is_some() || flags.tune_ffn.is_some();
    if has_gradients || flags.token_weights != Weighing::Equal {
        program::keep_freed_memory();
        // SAFETY: no other thread has been started.
        unsafe { whole_model::split_among(cli.running.n_threads()) };
    }
    let done = match config::sensitivity_run(&cli) {
        Some(measuring) if is_dry_run => measuring.check().map(drop),
        Some(measuring) => measuring.run(),
        None => config::job(cli).and_then(|job| if is_dry_run { job.dry_run() } else { job.run() }),
    };
    program::conclude(NAME, done.map(|()| ExitCode::SUCCESS), Error::is_stop)
}
