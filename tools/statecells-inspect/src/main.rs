//! `statecells-inspect`: shows what a GGUF holds and needs.

mod cli;

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use inspect::{Error, Inspection, KvTypes, comparison, text};
use program::Selection;
use program::table::print_line;

use crate::cli::Cli;

const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    let cli = Cli::from_args();
    if let Some(shell) = cli.completions {
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let print = |text: String| print_line(&text).map_err(program::io(Path::new("stdout"), "write"));
    let done = shown(&cli).and_then(|text| Ok(print(text)?));
    program::conclude(NAME, done.map(|()| ExitCode::SUCCESS), |_| false)
}

/// What the user asked to see.
fn shown(cli: &Cli) -> Result<String, Error> {
    let selection =
        Selection { layers: cli.layers.clone(), roles: cli.roles.clone(), ..Selection::default() };
    let types = KvTypes { keys: cli.ctk, values: cli.ctv };
    let inspect = |path: &Path| Inspection::new(path, &selection, cli.ctx, types);
    let file = inspect(cli.file.as_deref().expect("clap demands it"))?;
    let other = cli.compare.as_deref().map(inspect).transpose()?;
    Ok(match (other, cli.json) {
        (None, false) => text::text(&file),
        (None, true) => json(&file),
        (Some(other), false) => comparison::text(&file, &other),
        (Some(other), true) => json(&comparison::Comparison { file, other }),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data")
}
