//! `statecells-bench`: matrix products of the run-time kernels against ggml's own types, in one run.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod contenders;
mod data;
mod machine;
mod measure;
mod report;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{CommandFactory, Parser};
use ggml::product::ThreadPool;

use crate::cli::Cli;
use crate::config::Config;

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
            eprintln!("{NAME}: error: {}", builder::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<()> {
    if let Some(path) = &config.json {
        let folder = builder::files::parent(path);
        builder::files::check_writable(folder).map_err(|e| anyhow!("--json: {e}"))?;
    }
    let contenders = contenders::prepare(config)?;
    let x = data::gaussian(config.shape.d_in * config.n_tokens);
    let pool = ThreadPool::new(config.n_threads)?;
    let seconds = measure::measure(&pool, &contenders, &x, config.rounds)?;
    let report = report::Report::new(config, &contenders, &seconds);
    if let Some(path) = &config.json {
        report.write(path)?;
    }
    Ok(builder::table::print_line(&report.table())?)
}
