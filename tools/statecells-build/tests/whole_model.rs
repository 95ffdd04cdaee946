//! `--tune` and `--sequential`: steps that need the model itself.

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use builder::report::BuildReport;
use common::calibration::{Made, write_calibration};
use common::{Fixture, fails, stdout, succeeds};
use ggml::gguf::GgufFile;
use test_models::Model;

/// Coarse codes, so that tuning has something to do.
const BUILD: &str = "-i model.gguf --scheme sections --S 2 --rounds 1 --beam 2 --calib calib.gguf";

/// A calibration of `n_contexts`, a tenth of which is held out.
fn calibration_of(n_contexts: usize) -> Made {
    let (n_fitted, n_held_out) = (9 * n_contexts, n_contexts);
    Made { n_fitted, n_held_out, with_tokens: true, ..Made::default() }
}

fn fixture_of(model: &Model, n_contexts: usize) -> Fixture {
    let fixture = Fixture::new(model);
    write_calibration(&fixture, "calib.gguf", calibration_of(n_contexts));
    fixture
}

fn fixture() -> Fixture {
    fixture_of(&Model::default(), 40)
}

fn build(fixture: &Fixture, output: &str, flags: &str) -> String {
    stdout(&succeeds(&mut fixture.plain(&format!("{BUILD} -o {output} {flags}"))))
}

/// Data of all tensors whose names end in `suffix`.
fn data(fixture: &Fixture, output: &str, suffix: &str) -> Vec<Vec<u8>> {
    let file = GgufFile::open(&fixture.path(output)).unwrap();
    let named = file.tensors().iter().filter(|t| t.name().ends_with(suffix));
    named.map(|t| file.data(t).to_vec()).collect()
}

#[test]
fn tuning_changes_values_and_no_codes_and_is_reported() {
    let fixture = fixture();
    build(&fixture, "plain.gguf", "--outliers 0.01");
    let tune = "--outliers 0.01 --tune 20 --tune-contexts 4 --tune-rate 0.01 --report-json r.json";
    let text = build(&fixture, "tuned.gguf", tune);
    assert_eq!(data(&fixture, "plain.gguf", "codes"), data(&fixture, "tuned.gguf", "codes"));
    let positions = "outlier_idx";
    assert_eq!(data(&fixture, "plain.gguf", positions), data(&fixture, "tuned.gguf", positions));
    for suffix in ["ffn_up.dict", "ffn_up.row_scale", "ffn_up.outlier_val"] {
        let (plain, tuned) =
            (data(&fixture, "plain.gguf", suffix), data(&fixture, "tuned.gguf", suffix));
        assert!(plain.len() == 2 && plain.iter().zip(&tuned).all(|(a, b)| a != b), "{suffix}");
    }
    let report: BuildReport = serde_json::from_slice(&fixture.bytes("r.json")).unwrap();
    let tuning = report.tuning.unwrap();
    assert!(
        tuning.steps == 20 && tuning.divergence_after < 0.97 * tuning.divergence_before,
        "{tuning:?}"
    );
    assert!(text.contains("Tuned in 20 steps"), "{text}");
    assert!(report.arguments["--tune"] == "20" && report.arguments["--tune-rate"] == "0.01");
}

#[test]
fn threads_and_kills_do_not_change_the_bytes() {
    let fixture = fixture();
    let flags = "--tune 40 --sequential 1 --token-weights curvature --tune-contexts 2";
    build(&fixture, "one.gguf", &format!("{flags} -t 1"));
    build(&fixture, "two.gguf", &format!("{flags} -t 2"));
    assert!(fixture.bytes("one.gguf") == fixture.bytes("two.gguf"));
    let mut child = fixture
        .plain(&format!("{BUILD} -o killed.gguf {flags} -t 1"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let reached = lines.map(Result::unwrap).any(|line| line.contains("tuning step 3 of 40"));
    assert!(reached);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!fixture.path("killed.gguf").exists());
    build(&fixture, "killed.gguf", &format!("{flags} -t 1 --resume"));
    assert!(fixture.bytes("killed.gguf") == fixture.bytes("one.gguf"));
    // There is nothing left to do.
    build(&fixture, "killed.gguf", &format!("{flags} -t 1 --resume"));
    assert!(fixture.bytes("killed.gguf") == fixture.bytes("one.gguf"));
}

#[test]
fn recapturing_changes_what_later_layers_are_fitted_to() {
    let fixture = fixture();
    build(&fixture, "all.gguf", "--sequential 2");
    build(&fixture, "each.gguf", "--sequential 1");
    let codes = |output: &str| data(&fixture, output, "ffn_up.codes");
    let (all, each) = (codes("all.gguf"), codes("each.gguf"));
    assert!(all[0] == each[0] && all[1] != each[1]);
}

#[test]
fn later_matrices_make_up_for_earlier_errors() {
    let fixture = fixture_of(&Model::default(), 400);
    let divergence = |flags: &str| {
        // One step of tuning at almost no rate measures and changes nothing worth mentioning.
        let finer = BUILD.replace("--S 2", "--S 5");
        let measure = "-o out.gguf --force --tune 1 --tune-rate 1e-9 --report-json r.json";
        succeeds(&mut fixture.plain(&format!("{finer} {measure} {flags}")));
        let report: BuildReport = serde_json::from_slice(&fixture.bytes("r.json")).unwrap();
        report.tuning.unwrap().divergence_before
    };
    // Both are fitted to what the model really sees; with both layers in one group nothing is coded before.
    let (apart, in_turn) = (divergence("--sequential 2"), divergence("--sequential 1"));
    assert!(in_turn < 0.9 * apart, "{in_turn} and {apart}");
}

#[test]
fn tokens_are_weighed_when_asked() {
    let fixture = fixture();
    let report = |flags: &str| -> BuildReport {
        let command = format!("{BUILD} -o out.gguf --force --sequential 1 --report-json r.json");
        let text = common::stderr(&succeeds(&mut fixture.plain(&format!("{command} {flags}"))));
        let weighed = text.contains("weighing tokens: 100 %");
        assert_eq!(weighed, !flags.is_empty(), "{text}");
        serde_json::from_slice(&fixture.bytes("r.json")).unwrap()
    };
    let alike = report("");
    let codes = data(&fixture, "out.gguf", "ffn_up.codes");
    let weighed = report("--token-weights curvature");
    assert!(data(&fixture, "out.gguf", "ffn_up.codes") != codes);
    assert_eq!(weighed.arguments["--token-weights"], "curvature");
    assert_eq!(alike.arguments["--token-weights"], "equal");
    let usage = fixture.plain(&format!("{BUILD} -o out.gguf --token-weights equal")).output();
    assert_eq!(usage.unwrap().status.code(), Some(2));
}

#[test]
fn the_text_alone_is_enough_where_the_model_is_run_anyway() {
    let fixture = fixture();
    let flags = "--sequential 1 --tune 4 --tune-contexts 2";
    build(&fixture, "all.gguf", flags);
    write_calibration(&fixture, "calib.gguf", Made { n_layers: 0, ..calibration_of(40) });
    build(&fixture, "text.gguf", flags);
    for suffix in ["codes", "dict", "row_scale", "outlier_val"] {
        assert_eq!(data(&fixture, "all.gguf", suffix), data(&fixture, "text.gguf", suffix));
    }
    let says = ["calib.gguf", "no activations", "--sequential", "--tokens-only"];
    let budget = BUILD.replace("--S 2", "--bpw 2.5 --sequential 1 --dry-run");
    let signs = "-i model.gguf --scheme sign+vals --calib calib.gguf";
    for command in [BUILD, &format!("{BUILD} --tune 4"), &budget, signs] {
        fails(&mut fixture.plain(&format!("{command} -o out.gguf")), 1, &says);
    }
}

#[test]
fn what_cannot_be_done_is_refused_in_one_line() {
    let fixture = fixture();
    write_calibration(&fixture, "calib.gguf", Made::default());
    let refused = |flags: &str, parts: &[&str]| {
        let mut command = fixture.plain(&format!("{BUILD} -o out.gguf --force {flags}"));
        let output = command.output().unwrap();
        let text = common::stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let last = text.lines().last().unwrap();
        assert!(parts.iter().all(|part| last.contains(part)), "{text}");
        assert!(!fixture.path("out.gguf").exists());
    };
    refused("--sequential 1", &["--sequential: ", "calib.gguf", "statecells-calib"]);
    refused("--tune 1", &["--tune: ", "calib.gguf", "statecells-calib"]);
    let arcee = fixture_of(&Model { has_gate: false, ..Model::default() }, 40);
    let mut command = arcee.plain(&format!("{BUILD} -o out.gguf --sequential 1"));
    fails(&mut command, 1, &["--sequential: ", "model.gguf", "arcee"]);
    let usage = fixture.plain("-i model.gguf -o out.gguf --scheme sections --tune 3").output();
    assert_eq!(usage.unwrap().status.code(), Some(2));
}
