//! The program as a user runs it: verdicts, reports and refusals.

use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, starts_with};
use serde_json::Value;

/// A few shapes of all kinds, one matrix each: seconds even on a busy machine.
const QUICK: [&str; 4] = ["--sizes", "16x16,20x9,7x12,24x1,1x24", "--repeats", "1"];

fn toy(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seeddelta-toy"));
    command.args(args);
    command
}

fn quick(args: &[&str]) -> Command {
    let mut command = toy(&QUICK);
    command.args(args);
    command
}

fn report(args: &[&str], path: &Path) -> Value {
    quick(args).arg("--report-json").arg(path).assert().success();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_codec_agrees_with_theory() {
    let verdict = toy(&[]).assert().success();
    verdict.stdout(contains("PASS:").and(contains("A6")).and(contains("low rank, every r")));
}

#[test]
fn every_mistake_is_noticed_in_every_family_it_touches() {
    for (mistake, families) in [
        ("gain", "A1,A2,A3,A4,A5,A6"),
        ("reverse-input", "A1,A2,A3,A4,A5,A6"),
        ("drop-delta", "A5"),
        ("shift-delta", "A5"),
    ] {
        for family in families.split(',') {
            let run = quick(&["--case", family, "--sabotage", mistake]).assert();
            run.code(3).stdout(contains("FAIL:").and(contains("Cases that failed")));
        }
    }
}

#[test]
fn the_report_records_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(&["--seed", "9"], &folder.path().join("toy.json"));
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["record"]["tool"], "seeddelta-toy");
    assert_eq!(report["record"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["record"]["seed"], 9);
    let arguments: Vec<&str> =
        report["record"]["arguments"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    assert!(arguments.join(" ").contains("--repeats 1 --seed 9 --report-json"));
    assert_eq!(report["passed"], true);
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(report["total"]["cases"], cases.len());
    let families = report["families"].as_object().unwrap();
    assert_eq!(families.keys().collect::<Vec<_>>(), ["A1", "A2", "A3", "A4", "A5", "A6"]);
    // each family with and without base, noise and weights, in both storage types
    for family in families.keys() {
        for (pointer, value) in [
            ("/case/codec/base", Value::from("none")),
            ("/case/codec/base_type", Value::from("f32")),
            ("/case/codec/base_type", Value::from("f16")),
            ("/case/noise", Value::from(0.0)),
            ("/case/noise", Value::from(0.03)),
            ("/case/weighted", Value::from(false)),
            ("/case/weighted", Value::from(true)),
        ] {
            let has = |case: &&Value| {
                case["case"]["family"] == family.as_str() && case.pointer(pointer) == Some(&value)
            };
            assert!(cases.iter().any(|case| has(&case)), "{family} {pointer} {value}");
        }
    }
}

#[test]
fn low_rank_runs_every_rank() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(&["--case", "A3", "--noise", "0"], &folder.path().join("toy.json"));
    let cases = report["cases"].as_array().unwrap();
    for rank in 1..=16 {
        let base = format!("lowrank:{rank}");
        assert!(cases.iter().any(|c| c["case"]["codec"]["base"] == base.as_str()), "{base}");
    }
}

#[test]
fn results_depend_on_the_seed_only() {
    let folder = tempfile::tempdir().unwrap();
    let cases = |args: &[&str]| report(args, &folder.path().join("toy.json"))["cases"].take();
    let one = cases(&["-t", "1"]);
    assert_eq!(one, cases(&["-t", "2"]));
    assert_ne!(one, cases(&["--seed", "2"]));
    // a family's matrices do not depend on what else is run
    let alone = cases(&["--case", "A4"]);
    let of_all: Vec<Value> =
        one.as_array().unwrap().iter().filter(|c| c["case"]["family"] == "A4").cloned().collect();
    assert_eq!(alone.as_array().unwrap(), &of_all);
}

#[test]
fn verbose_lists_every_case() {
    let run = quick(&["--case", "A2", "--noise", "0", "-v"]).assert().success();
    run.stdout(
        contains("All cases:").and(contains("A2 20x9 #0 diagonal f16 K=0 noise=0 weighted")),
    );
}

#[test]
fn wrong_usage_says_what_is_right() {
    for (args, hint) in [
        (["--case", "A9"], "possible values: A1, A2, A3, A4, A5, A6"),
        (["--sizes", "0x4"], "both at least 1"),
        (["--sizes", "64"], "as in 96x40"),
        (["--sizes", "99999x99999"], "smaller matrices show the same"),
        (["--noise", "0.5"], "use 0 to 0.05"),
        (["--noise", "nan"], "use 0 to 0.05"),
        (["--repeats", "0"], "1..=1000"),
        (["--sabotage", "all"], "drop-delta"),
    ] {
        toy(&args).assert().code(2).stderr(contains(hint));
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("toy.json");
    let run = quick(&["--case", "A1"]).arg("--report-json").arg(&path).assert().code(1);
    let message = format!("seeddelta-toy: --report-json {}: ", path.display());
    run.stderr(contains(message).and(contains("panicked").not()));
    assert!(!path.exists());
}

#[test]
fn help_teaches() {
    let help = toy(&["--help"]).assert().success();
    help.stdout(
        starts_with("Check the SeedDelta codec")
            .and(contains("Exit codes: 0 measured equals expected"))
            .and(contains("seeddelta-toy --case A3 --sizes 64x48 -v")),
    );
}
