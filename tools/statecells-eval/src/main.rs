//! `statecells-eval`: compares a compressed model with its base and with other types.
#![forbid(unsafe_code)]

mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use evaluation::comparison::Comparison;
use evaluation::{Error, EvaluationReport, Options, Part, evaluate, page, summary};
use program::{Interrupt, files, table};

use crate::cli::Cli;

/// The program's name, as it starts messages and records.
const NAME: &str = env!("CARGO_PKG_NAME");

/// Exit code for a rule that failed.
const EXIT_RULE_FAILED: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::from_args();
    if let Some(shell) = cli.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let done = match cli.page.as_deref() {
        Some(report) => page_again(report).map(|()| ExitCode::SUCCESS),
        None if !cli.compare.is_empty() => {
            compare(&cli.compare, &cli.outdir).map(|()| ExitCode::SUCCESS)
        }
        None => cli.options().and_then(|options| run(&options)),
    };
    program::conclude(NAME, done, |error| matches!(error.downcast_ref(), Some(Error::Stopped)))
}

fn run(options: &Options) -> Result<ExitCode> {
    let notice = format!("{NAME}: stopping, finished measurements are kept");
    let interrupt = Interrupt::install(notice).context("cannot catch signals")?;
    let report = evaluate(options, &interrupt)?;
    let json = serde_json::to_string_pretty(&report)?;
    let [for_programs, for_people] = options.reports();
    files::write_atomically(&for_programs, json.as_bytes())?;
    files::write_atomically(&for_people, page::render(&report).as_bytes())?;
    table::print_line(&summary(&report, table::stdout_is_coloured()))?;
    table::print_line(&format!("Report: {}", for_people.display()))?;
    Ok(exit_code(&report, options))
}

/// What the user asked to leave out does not decide; what failed does.
fn exit_code(report: &EvaluationReport, options: &Options) -> ExitCode {
    let decides = |id: &str| options.wants(Part::Speed) || !id.starts_with("speed");
    let required = report.verdict.required().filter(|r| decides(&r.id));
    let outcomes: Vec<Option<bool>> = required.map(|r| r.passed).collect();
    if report.has_failures() || outcomes.contains(&None) {
        ExitCode::FAILURE
    } else if outcomes.contains(&Some(false)) {
        ExitCode::from(EXIT_RULE_FAILED)
    } else {
        ExitCode::SUCCESS
    }
}

fn read_report(path: &Path) -> Result<EvaluationReport> {
    let named = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(named)?;
    serde_json::from_str(&text).context("no report of this program").with_context(named)
}

/// The page of an earlier report.
fn page_again(path: &Path) -> Result<()> {
    let html = path.with_file_name("report.html");
    files::write_atomically(&html, page::render(&read_report(path)?).as_bytes())?;
    Ok(table::print_line(&format!("Report: {}", html.display()))?)
}

/// Earlier reports side by side.
fn compare(paths: &[PathBuf], outdir: &Path) -> Result<()> {
    let read = |path: &PathBuf| Ok((path.clone(), read_report(path)?));
    let reports: Vec<_> = paths.iter().map(read).collect::<Result<_>>()?;
    let comparison = Comparison::new(&reports)?;
    std::fs::create_dir_all(outdir).with_context(|| outdir.display().to_string())?;
    for (name, picture) in page::comparison::pictures(&comparison) {
        files::write_atomically(&outdir.join(name), picture.as_bytes())?;
    }
    let html = outdir.join("comparison.html");
    files::write_atomically(&html, page::comparison::render(&comparison).as_bytes())?;
    table::print_line(&page::comparison::summary(&comparison, table::stdout_is_coloured()))?;
    Ok(table::print_line(&format!("Report: {}", html.display()))?)
}
