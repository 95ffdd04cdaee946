//! `tiny-transformer`: makes the data, trains the model, exports it.

mod cli;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

/// The program's name, as it starts messages.
const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    match run::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
