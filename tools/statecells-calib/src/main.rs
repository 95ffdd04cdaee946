//! `statecells-calib`: collects what the FFN matrices of a GGUF model see on real text.

mod cli;

use std::process::ExitCode;

use builder::calibrate;
use clap::{CommandFactory, Parser};

use crate::cli::Cli;

/// The program's name, as it starts messages and records.
const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(shell) = cli.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let done = calibrate::run(&cli.job()).map(|()| ExitCode::SUCCESS);
    program::conclude(NAME, done, |error| error.is::<calibrate::Stopped>())
}
