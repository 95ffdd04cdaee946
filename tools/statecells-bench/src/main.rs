//! `statecells-bench`: matrix products of the run-time kernels against ggml's own types, in one run.
#![forbid(unsafe_code)]

mod cli;
mod config;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{CommandFactory, Parser};
use lab::bench::report::{self, Report};
use lab::bench::{self, Order, Program};

use crate::cli::Cli;

/// The program, as it starts messages and records.
const PROGRAM: Program =
    Program { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") };

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(shell) = cli.completions {
        let stdout = &mut std::io::stdout();
        clap_complete::generate(shell, &mut Cli::command(), PROGRAM.name, stdout);
        return ExitCode::SUCCESS;
    }
    let order = config::order(&cli).unwrap_or_else(|error| error.exit());
    match run(&order, cli.json.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: error: {}", PROGRAM.name, program::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(order: &Order, json: Option<&Path>) -> Result<()> {
    if let Some(path) = json {
        let folder = program::files::parent(path);
        program::files::check_writable(folder).map_err(|e| anyhow!("--json: {e}"))?;
    }
    bench::run(PROGRAM, order, &mut |reports: &[Report]| {
        if let Some(newest) = reports.last() {
            program::table::print_line(&newest.table())?;
        }
        // After each batch: what is measured is not lost if a later one fails.
        json.map_or(Ok(()), |path| report::write(reports, path))
    })
}
