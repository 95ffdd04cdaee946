//! `statecells-calib`: collects what the FFN matrices of a GGUF model see on real text.

mod cli;
mod run;
mod summary;
mod texts;

use std::process::ExitCode;

use builder::EXIT_INTERRUPTED;
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
    match run::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<run::Stopped>() => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("{NAME}: error: {}", builder::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
