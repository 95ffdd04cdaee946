//! What works with which architecture: every step of a build, on a random model of two layers, and the coded model in
//! llama.cpp. The table is `docs/results/architectures.md`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use end_to_end::logits::{Pace, distance, load_coded, load_dense, logits};
use end_to_end::programs::Run;
use fixtures::architectures::{self, AT_ONCE, IN_TURN, Number};
use tempfile::TempDir;

/// Coarse codes and the least text of the model's own.
const BUILD: &str = "--S 4 --rounds 1 --beam 2 --tokens 512 -t 2";

/// Columns of the table with the flags that ask for the step.
const STEPS: [(&str, &str); 4] = [
    ("calibrated on its own text", ""),
    ("`--sequential 1`", "--sequential 1"),
    ("`--tune-ffn`", "--tune-ffn 2"),
    ("`--tune`", "--tune 2"),
];

/// Rewrites the table if set.
const REGENERATE: &str = "UPDATE_ARCHITECTURES";

const TITLE: &str = "\
# Architectures

Every dense architecture of the pinned llama.cpp of which a random model can be made from metadata alone, and gemma3n: two layers
(gemma3n: 22, of which the last two read keys and values of an earlier one), and what works with it. Where a step does not,
`statecells-build` says why before it begins. \"run\": the coded file answers in llama.cpp with `--statecells`. gemma-embedding
predicts no tokens and mamba, mamba2 and rwkv6 have no FFN of the kind that is coded.

    UPDATE_ARCHITECTURES=1 cargo test --release -p end-to-end --test architectures

";

fn build(model: &Path, output: &Path, flags: &str) -> Run {
    let files = ["-i", model.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let flags = BUILD.split_whitespace().chain(flags.split_whitespace());
    Run::of("statecells-build", files.into_iter().chain(flags))
}

/// The row of one architecture.
fn row(name: &str, folder: &Path) -> String {
    let (model, output) = (folder.join("model.gguf"), folder.join("coded.gguf"));
    let numbers = [("context_length", Number::Count(64))];
    architectures::write_with(name, &numbers, &model).unwrap();
    if build(&model, &output, "--sequential 0").code != Some(0) {
        return format!("| {name} |{}", " no |".repeat(STEPS.len() + 1));
    }
    let works = STEPS.map(|(_, flags)| {
        let dry = build(&model, &output, &format!("{flags} --force --dry-run"));
        dry.code == Some(0)
    });
    let mut row = format!("| {name} |");
    works.iter().for_each(|works| row.push_str(if *works { " yes |" } else { " no |" }));
    let steps = STEPS.iter().zip(works).skip(1).filter(|(_, works)| *works);
    let all = steps.map(|((_, flags), _)| *flags).collect::<Vec<_>>().join(" ");
    let none = if works[1] { "" } else { "--sequential 0" };
    let _ = build(&model, &output, &format!("{all} {none} --force")).ok();
    let tokens: Vec<i32> = (0..24).map(|i| 3 + (i * 37) % 256).collect();
    let of = |model: &llama::Model| logits(model, &tokens, Pace::Batch, 1);
    let (dense, coded) = (of(&load_dense(&model).unwrap()), of(&load_coded(&output).unwrap()));
    let distance = distance(&dense, &coded);
    assert!(distance > 0.0 && distance < 2.0, "{name}: {distance}");
    row + " yes |"
}

#[test]
fn every_step_works_where_the_table_says_so() {
    let mut table = TITLE.to_owned();
    let columns = STEPS.map(|(column, _)| column).join(" | ");
    writeln!(table, "| architecture | {columns} | run |\n|---|---|---|---|---|---|").unwrap();
    let mut names: Vec<&str> = IN_TURN.into_iter().chain(AT_ONCE).collect();
    names.sort_unstable();
    for name in names {
        let folder = TempDir::new().unwrap();
        let row = row(name, folder.path());
        println!("{row}");
        writeln!(table, "{row}").unwrap();
    }
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results/architectures.md");
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == table, "{} differs: set {REGENERATE} and commit it", path.display());
}
