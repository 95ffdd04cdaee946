//! `statecells-inspect`: shows what a GGUF holds and needs.

mod cli;
mod compare;
mod show;

use std::path::Path;
use std::process::ExitCode;

use builder::inspect::{Inspection, KvTypes};
use builder::table::print_line;
use builder::{Error, Selection, printable};
use clap::CommandFactory;

use crate::cli::Cli;

const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let cli = Cli::from_args();
    if let Some(shell) = cli.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let text = match text(&cli) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{NAME}: error: {}", printable(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match print_line(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: error: stdout: cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the user asked to see.
fn text(cli: &Cli) -> Result<String, Error> {
    let selection =
        Selection { layers: cli.layers.clone(), roles: cli.roles.clone(), ..Selection::default() };
    let types = KvTypes { keys: cli.ctk, values: cli.ctv };
    let inspect = |path: &Path| Inspection::new(path, &selection, cli.ctx, types);
    let file = inspect(cli.file.as_deref().expect("clap demands it"))?;
    let other = cli.compare.as_deref().map(inspect).transpose()?;
    Ok(match (other, cli.json) {
        (None, false) => show::text(&file),
        (None, true) => json(&file),
        (Some(other), false) => compare::text(&file, &other),
        (Some(other), true) => json(&compare::Comparison { file, other }),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data")
}
