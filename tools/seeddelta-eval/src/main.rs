//! `seeddelta-eval`: tries many SeedDelta forms of a model and reports what would have foretold their loss.

mod auto;
mod bench;
mod cli;
mod findings;
mod page;
mod record;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::bench::Bench;
use crate::cli::Cli;
use crate::record::Record;

/// The program's name, as it starts messages and records.
const NAME: &str = env!("CARGO_PKG_NAME");
/// Exit code if the strict policy collapsed.
const EXIT_COLLAPSED: u8 = 3;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{NAME}: the strict policy (B5) collapsed, see the report");
            ExitCode::from(EXIT_COLLAPSED)
        }
        Err(error) => {
            eprintln!("{NAME}: error: {}", builder::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Whether the strict policy held.
fn run(cli: &Cli) -> Result<bool> {
    let mut bench = Bench::open(cli)?;
    let runs = cli.sweep(bench.n_layers()).runs(bench.n_layers());
    let mut results = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let result = bench.run(run.group, &run.name, &run.layers, &run.policy())?;
        eprintln!("[{}/{}] {}: {}", i + 1, runs.len(), run.group, result.line());
        results.push(result);
    }
    let auto = auto::strict_policy(&mut bench, cli, &results)?;
    let record = Record::new(cli, &bench, results, auto)?;
    let write = |name: &str, text: String| {
        let path = cli.output.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    };
    write("report.json", serde_json::to_string_pretty(&record)? + "\n")?;
    write("report.html", page::render(&record))?;
    if let Some(auto) = &record.auto {
        write("policy.auto.json", serde_json::to_string_pretty(&auto.policy)? + "\n")?;
    }
    println!("{}", record.findings.text());
    println!("{}", cli.output.join("report.html").display());
    Ok(record.auto.as_ref().is_none_or(|auto| !auto.result.cliff))
}
