//! `--tune-ffn`, alone and before `--tune`.

mod common;

use builder::report::{BuildReport, Origin};
use common::calibration::{Made, write_calibration};
use common::{Fixture, data, stderr, stdout, succeeds};
use fixtures::models::Model;

/// Coarse codes, so that tuning has something to do.
const BUILD: &str = "-i model.gguf --scheme sections --S 2 --rounds 1 --beam 2 --outliers 0.01 --shrink 0 \
     --calib calib.gguf";

const TUNE_FFN: &str = "--tune-ffn 20 --tune-ffn-contexts 4 --tune-ffn-rate 0.01";

fn fixture() -> Fixture {
    let fixture = Fixture::new(&Model::default());
    let made = Made { n_fitted: 360, n_held_out: 40, with_tokens: true, ..Made::default() };
    write_calibration(&fixture, "calib.gguf", made);
    fixture
}

/// What a build prints, and what it says on the way.
fn build(fixture: &Fixture, output: &str, flags: &str) -> (String, String) {
    let done = succeeds(&mut fixture.plain(&format!("{BUILD} -o {output} {flags}")));
    (stdout(&done), stderr(&done))
}

fn report(fixture: &Fixture, output: &str, flags: &str) -> (BuildReport, String) {
    let (_, said) = build(fixture, output, &format!("{flags} --report-json r.json"));
    (serde_json::from_slice(&fixture.bytes("r.json")).unwrap(), said)
}

/// Runs a build until it says `line`, and kills it.
fn killed_at(fixture: &Fixture, output: &str, flags: &str, line: &str) {
    common::killed_at(&mut fixture.plain(&format!("{BUILD} -o {output} {flags}")), line);
    assert!(!fixture.path(output).exists());
}

#[test]
fn tuning_changes_values_and_no_codes_and_is_reported() {
    let fixture = fixture();
    build(&fixture, "plain.gguf", "");
    let flags = format!("{TUNE_FFN} --report-json r.json");
    let (text, said) = build(&fixture, "tuned.gguf", &flags);
    for same in ["codes", "outlier_idx"] {
        assert_eq!(data(&fixture, "plain.gguf", same), data(&fixture, "tuned.gguf", same));
    }
    for suffix in ["ffn_down.dict", "ffn_gate.row_scale", "ffn_up.outlier_val"] {
        let [plain, tuned] = ["plain.gguf", "tuned.gguf"].map(|o| data(&fixture, o, suffix));
        assert!(plain.len() == 2 && plain.iter().zip(&tuned).all(|(a, b)| a != b), "{suffix}");
    }
    let report: BuildReport = serde_json::from_slice(&fixture.bytes("r.json")).unwrap();
    let tuning = report.ffn_tuning.unwrap();
    assert_eq!((tuning.steps, tuning.layers, tuning.layers_left), (20, 2, 0));
    assert!(tuning.error_after < 0.95 * tuning.error_before, "{tuning:?}");
    assert!(report.tuning.is_none() && report.arguments["--tune-ffn"] == "20");
    assert!(text.contains("FFNs of 2 layers tuned in 20 steps each"), "{text}");
    assert!(said.contains("[2/2] FFN of layer 1 tuned"), "{said}");
}

#[test]
fn both_ways_of_tuning_follow_each_other_and_bring_the_model_nearer() {
    let fixture = fixture();
    let whole = "--tune 10 --tune-contexts 2 --tune-rate 0.005";
    let (alone, _) = report(&fixture, "alone.gguf", whole);
    let (both, _) = report(&fixture, "both.gguf", &format!("{TUNE_FFN} {whole}"));
    let (alone, both_whole) = (alone.tuning.unwrap(), both.tuning.unwrap());
    assert!(both.ffn_tuning.is_some());
    assert!(both_whole.divergence_before < 0.95 * alone.divergence_before, "{both_whole:?}");
    assert!(both_whole.divergence_after < both_whole.divergence_before, "{both_whole:?}");
}

/// What each stage made is kept: a kill, and other values for a later stage, cost no earlier one.
#[test]
fn stages_are_kept_one_by_one() {
    let fixture = fixture();
    build(&fixture, "ffn.gguf", TUNE_FFN);
    let long = "--tune 4000 --tune-contexts 2";
    killed_at(&fixture, "out.gguf", &format!("{TUNE_FFN} {long}"), "tuning step 2 of 4000");
    let work = fixture.path("out.gguf.statecells-work");
    let named = |extension: &str| {
        let entries = std::fs::read_dir(&work).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == extension)).count()
    };
    assert_eq!((named("tensor"), named("ffn-tuned"), named("tuned")), (6, 6, 0));
    // Without the later stage nothing is left to do.
    let (done, said) = report(&fixture, "out.gguf", &format!("{TUNE_FFN} --resume"));
    assert!(done.tensors.iter().all(|t| t.origin == Origin::Checkpoint));
    assert!(!said.contains("FFN of layer"), "{said}");
    assert!(fixture.bytes("out.gguf") == fixture.bytes("ffn.gguf"));
    // With other values for the first of them, both are done again.
    let (both, less) = (format!("{TUNE_FFN} --tune 3"), "--tune-ffn 5 --tune 3");
    build(&fixture, "both.gguf", &both);
    build(&fixture, "less.gguf", less);
    killed_at(&fixture, "again.gguf", &format!("{TUNE_FFN} {long}"), "tuning step 2 of 4000");
    let (_, said) = report(&fixture, "again.gguf", &format!("{both} --resume"));
    assert!(!said.contains("FFN of layer") && said.contains("tuning step 3 of 3"), "{said}");
    assert!(fixture.bytes("again.gguf") == fixture.bytes("both.gguf"));
    std::fs::remove_file(fixture.path("again.gguf")).unwrap();
    killed_at(&fixture, "again.gguf", &format!("{TUNE_FFN} {long}"), "tuning step 2 of 4000");
    let (_, said) = report(&fixture, "again.gguf", &format!("{less} --resume"));
    assert!(said.contains("FFN of layer") && !said.contains("[1/6]"), "{said}");
    assert!(fixture.bytes("again.gguf") == fixture.bytes("less.gguf"));
}

/// Products large enough that they are split.
#[test]
fn threads_do_not_change_the_bytes() {
    let model = Model { n_embd: 128, n_ff: 768, n_vocab: 1200, ..Model::default() };
    let fixture = Fixture::new(&model);
    let made = Made { n_fitted: 180, n_held_out: 20, with_tokens: true, ..Made::default() };
    write_calibration(&fixture, "calib.gguf", made);
    build(&fixture, "one.gguf", "--tune-ffn 4 -t 1");
    for threads in [2, 5] {
        build(&fixture, "out.gguf", &format!("--tune-ffn 4 --force -t {threads}"));
        assert!(fixture.bytes("out.gguf") == fixture.bytes("one.gguf"), "-t {threads}");
    }
}

/// What the FFN sees is taken in front of the whole FFN, whichever of its matrices are coded.
#[test]
fn a_part_of_the_matrices_can_be_tuned() {
    let fixture = fixture();
    let (report, _) = report(&fixture, "out.gguf", &format!("--targets down {TUNE_FFN}"));
    let tuning = report.ffn_tuning.unwrap();
    assert!(tuning.layers == 2 && tuning.error_after < tuning.error_before, "{tuning:?}");
}
