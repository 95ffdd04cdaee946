//! `seeddelta-eval`: tries many SeedDelta forms of a model and reports what would have foretold their loss.

mod cli;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lab::forms::bench::Bench;
use lab::forms::report::Report;
use lab::forms::{auto, page};

use crate::cli::Cli;

/// The program's name, as it starts messages and reports.
const NAME: &str = env!("CARGO_PKG_NAME");
/// Exit code if the strict policy collapsed.
const EXIT_COLLAPSED: u8 = 3;

fn main() -> ExitCode {
    let code = |holds| {
        if holds {
            return ExitCode::SUCCESS;
        }
        eprintln!("{NAME}: the strict policy (B5) collapsed, see the report");
        ExitCode::from(EXIT_COLLAPSED)
    };
    program::conclude(NAME, run(&Cli::parse()).map(code), |_| false)
}

/// Whether the strict policy held.
fn run(cli: &Cli) -> Result<bool> {
    std::fs::create_dir_all(&cli.output).with_context(|| cli.output.display().to_string())?;
    let mut bench = Bench::open(cli.setup()?, &cli.material)?;
    let sweep = cli.sweep(bench.n_layers());
    let say = &mut |line: &str| eprintln!("{line}");
    let results = bench.run_all(&sweep.runs(), say)?;
    let auto = auto::strict_policy(&mut bench, &cli.base, &results, say)?;
    let tool = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    let arguments = serde_json::to_value(cli)?;
    let material = cli.material.files();
    let report = Report::new((tool, arguments), &cli.model, material, &bench, (results, auto))?;
    let write = |name: &str, text: String| {
        let path = cli.output.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    };
    write("report.json", serde_json::to_string_pretty(&report)? + "\n")?;
    write("report.html", page::render(&report))?;
    if let Some(auto) = &report.auto {
        write("policy.auto.json", auto.policy.to_json())?;
    }
    println!("{}", report.findings.text());
    println!("{}", cli.output.join("report.html").display());
    Ok(report.auto.as_ref().is_none_or(|auto| !auto.result.cliff))
}
