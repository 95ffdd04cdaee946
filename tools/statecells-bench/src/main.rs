//! `statecells-bench`: matrix products of the run-time kernels against ggml's own types, in one run.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod contenders;
mod data;
mod machine;
mod measure;
mod read;
mod report;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{CommandFactory, Parser};
use ggml::product::ThreadPool;

use crate::cli::Cli;
use crate::config::Config;
use crate::read::Reading;
use crate::report::Report;

/// The program's name, as it starts messages and records.
const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(shell) = cli.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let config = Config::from_cli(cli).unwrap_or_else(|error| error.exit());
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: error: {}", program::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<()> {
    if let Some(path) = &config.json {
        let folder = program::files::parent(path);
        program::files::check_writable(folder).map_err(|e| anyhow!("--json: {e}"))?;
    }
    let contenders = contenders::prepare(config)?;
    let pool = ThreadPool::new(config.n_threads)?;
    let mut reports = Vec::new();
    for &n_tokens in &config.batches {
        let x = data::gaussian(config.shape.d_in * n_tokens);
        // With more tokens a product is not limited by memory.
        let reading = (n_tokens == 1).then(|| {
            Reading::new(contenders[0].n_bytes() * contenders[0].copies.len(), config.n_threads)
        });
        let seconds = measure::measure(&pool, &contenders, &x, config.rounds, reading.as_ref())?;
        let report = Report::new(config, n_tokens, &contenders, &seconds);
        program::table::print_line(&report.table())?;
        reports.push(report);
        // After each batch: what is measured is not lost if a later one fails.
        if let Some(path) = &config.json {
            report::write(&reports, path)?;
        }
    }
    Ok(())
}
