//! `--tune` and `--sequential`: steps that need the model itself.

mod common;

use std::process::{Child, Command};

use builder::report::{BuildReport, Origin};
use common::calibration::{Made, write_calibration};
use common::{Fixture, data, fails, stdout, succeeds};
use fixtures::models::Model;
use ggml::gguf::GgufFile;

/// Coarse codes, so that tuning has something to do.
const BUILD: &str =
    "-i model.gguf --scheme sections --S 2 --rounds 1 --beam 2 --shrink 0 --calib calib.gguf";

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
    killed_at(&fixture, "killed.gguf", &format!("{flags} -t 1"), "tuning step 3 of 40");
    build(&fixture, "killed.gguf", &format!("{flags} -t 1 --resume"));
    assert!(fixture.bytes("killed.gguf") == fixture.bytes("one.gguf"));
    // There is nothing left to do.
    build(&fixture, "killed.gguf", &format!("{flags} -t 1 --resume"));
    assert!(fixture.bytes("killed.gguf") == fixture.bytes("one.gguf"));
}

/// The build of `output` with `flags`.
fn command(fixture: &Fixture, output: &str, flags: &str) -> Command {
    fixture.plain(&format!("{BUILD} -o {output} {flags}"))
}

/// A build that has said `line`, and what it says from then on.
fn running_at(
    fixture: &Fixture,
    output: &str,
    flags: &str,
    line: &str,
) -> (Child, impl Iterator<Item = String> + use<>) {
    common::running_at(&mut command(fixture, output, flags), line)
}

/// Runs a build until it says `line`, and kills it.
fn killed_at(fixture: &Fixture, output: &str, flags: &str, line: &str) {
    common::killed_at(&mut command(fixture, output, flags), line);
    assert!(!fixture.path(output).exists());
}

#[test]
fn tuning_may_be_left_out_or_changed_once_everything_is_coded() {
    let fixture = fixture();
    build(&fixture, "plain.gguf", "");
    build(&fixture, "other.gguf", "--tune 4 --tune-contexts 2 --tune-rate 0.01");
    let tune = "--tune 4000 --tune-contexts 2";
    killed_at(&fixture, "out.gguf", tune, "tuning step 2 of 4000");
    // Everything else must be as it was.
    let text = common::stderr(
        &fixture.plain(&format!("{BUILD} -o out.gguf --resume --rounds 2")).output().unwrap(),
    );
    assert!(text.contains("cannot be used multiple times"), "{text}");
    let other = BUILD.replace("--rounds 1", "--rounds 2");
    let mut other = fixture.plain(&format!("{other} -o out.gguf --resume"));
    fails(&mut other, 1, &["--rounds is 2", "was made with 1"]);
    let says = build_report(&fixture, "out.gguf", "--resume");
    assert!(says.tensors.iter().all(|t| t.origin == Origin::Checkpoint));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("plain.gguf"));
    std::fs::remove_file(fixture.path("out.gguf")).unwrap();
    killed_at(&fixture, "out.gguf", tune, "tuning step 2 of 4000");
    build(&fixture, "out.gguf", "--resume --tune 4 --tune-contexts 2 --tune-rate 0.01");
    assert!(fixture.bytes("out.gguf") == fixture.bytes("other.gguf"));
    // A step may also be added where there is no output yet, but not to one that is complete.
    let mut complete = fixture.plain(&format!("{BUILD} -o plain.gguf --resume --tune 4"));
    fails(&mut complete, 1, &["--tune is 4", "was made with not set"]);
}

fn build_report(fixture: &Fixture, output: &str, flags: &str) -> BuildReport {
    build(fixture, output, &format!("{flags} --report-json r.json"));
    serde_json::from_slice(&fixture.bytes("r.json")).unwrap()
}

#[test]
fn tuned_tensors_are_kept_beside_those_that_they_were_made_from() {
    let fixture = fixture();
    let tune = "--tune 300 --tune-contexts 2";
    build(&fixture, "plain.gguf", "");
    build(&fixture, "tuned.gguf", tune);
    // A model that changes under way is told of at the end, when everything is tuned and stored.
    let model = fixture.bytes("model.gguf");
    let (mut child, lines) = running_at(&fixture, "out.gguf", tune, "tuning step 2 of 300");
    std::fs::write(fixture.path("longer.gguf"), [&model[..], b"more"].concat()).unwrap();
    std::fs::rename(fixture.path("longer.gguf"), fixture.path("model.gguf")).unwrap();
    let last = lines.last().unwrap();
    assert!(child.wait().unwrap().code() == Some(1) && last.contains("changed while"), "{last}");
    std::fs::write(fixture.path("model.gguf"), &model).unwrap();
    let work = fixture.path("out.gguf.statecells-work");
    let named = |extension: &str| {
        let entries = std::fs::read_dir(&work).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == extension)).count()
    };
    assert_eq!((named("tensor"), named("tuned")), (6, 6));
    let copy = |from: &str, to: &str| {
        let from = fixture.path(from);
        std::fs::create_dir_all(fixture.path(to)).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
            std::fs::copy(file.path(), fixture.path(to).join(file.file_name())).unwrap();
        }
    };
    for other in ["less.gguf", "part.gguf"] {
        copy("out.gguf.statecells-work", &format!("{other}.statecells-work"));
    }
    // All of them are there: nothing is done again.
    let report = build_report(&fixture, "out.gguf", &format!("{tune} --resume"));
    assert!(report.tensors.iter().all(|t| t.origin == Origin::Checkpoint));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("tuned.gguf"));
    // One is missing, as after a kill while they were stored: all are tuned again, none is coded again.
    let part = fixture.path("part.gguf.statecells-work");
    std::fs::remove_file(part.join("blk.1.ffn_up.tuned")).unwrap();
    let command = format!("{BUILD} -o part.gguf {tune} --resume");
    let text = common::stderr(&succeeds(&mut fixture.plain(&command)));
    assert!(text.contains("tuning step 300 of 300") && !text.contains("[1/"), "{text}");
    assert!(fixture.bytes("part.gguf") == fixture.bytes("tuned.gguf"));
    // Without tuning, what was tuned is left.
    build(&fixture, "less.gguf", "--resume");
    assert!(fixture.bytes("less.gguf") == fixture.bytes("plain.gguf"));
}

fn three_layers() -> Fixture {
    let fixture = Fixture::new(&Model { n_layers: 3, ..Model::default() });
    write_calibration(&fixture, "calib.gguf", Made { n_layers: 3, ..calibration_of(40) });
    fixture
}

#[test]
fn a_sequential_file_grows_behind_what_is_finished_and_not_in_front_of_it() {
    let fixture = three_layers();
    let flags = "--sequential 1";
    build(&fixture, "all.gguf", flags);
    build(&fixture, "out.gguf", &format!("{flags} --layers 1"));
    let before = fixture.bytes("out.gguf");
    let says = ["out.gguf", "blk.1.ffn_down is finished", "blk.0.ffn_gate", "--force"];
    for more in ["--layers 0-2", "--layers 0 --targets down", ""] {
        for dry in ["", "--dry-run"] {
            let command = format!("{BUILD} -o out.gguf {flags} {more} --resume {dry}");
            fails(&mut fixture.plain(&command), 1, &says[..2]);
        }
    }
    let command = format!("{BUILD} -o out.gguf {flags} --resume");
    fails(&mut fixture.plain(&command), 1, &says);
    assert!(fixture.bytes("out.gguf") == before);
    build(&fixture, "out.gguf", &format!("{flags} --layers 2 --resume"));
    build(&fixture, "behind.gguf", &format!("{flags} --layers 1-2"));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("behind.gguf"));
    // From the front it grows to what one run would have written.
    build(&fixture, "front.gguf", &format!("{flags} --layers 0"));
    build(&fixture, "front.gguf", &format!("{flags} --layers 0-1 --resume"));
    build(&fixture, "front.gguf", &format!("{flags} --resume"));
    assert!(fixture.bytes("front.gguf") == fixture.bytes("all.gguf"));
    // The same for a run that was killed.
    killed_at(&fixture, "killed.gguf", &format!("{flags} --layers 1-2"), "[2/6] blk.1.ffn_up");
    let command = format!("{BUILD} -o killed.gguf {flags} --resume");
    fails(&mut fixture.plain(&command), 1, &["blk.0.ffn_gate", "in front of it"]);
    build(&fixture, "killed.gguf", &format!("{flags} --layers 1-2 --resume"));
    assert!(fixture.bytes("killed.gguf") == fixture.bytes("behind.gguf"));
}

#[test]
fn recorded_gaps_are_taken_over_as_they_are() {
    let fixture = three_layers();
    let flags = "--sequential 1";
    let gaps = |report: &BuildReport| -> Vec<f64> {
        report.tensors.iter().map(|t| t.gap_recorded.unwrap()).collect()
    };
    let free = gaps(&build_report(&fixture, "free.gguf", flags));
    // All of them pass, by nothing: any other yardstick would make some of them too large.
    let largest = free.iter().copied().fold(0.0, f64::max);
    let flags = format!("{flags} --gap-tol {}", largest * 1.000_001);
    let one = build_report(&fixture, "one.gguf", &flags);
    assert!(one.totals.n_dense == 0 && gaps(&one) == free);
    build(&fixture, "out.gguf", &format!("{flags} --layers 0-1"));
    let grown = build_report(&fixture, "out.gguf", &format!("{flags} --resume"));
    assert_eq!(gaps(&grown), free);
    assert_eq!(grown.tensors.iter().filter(|t| t.origin == Origin::Output).count(), 6);
    assert!(fixture.bytes("out.gguf") == fixture.bytes("one.gguf"));
    // Without a tolerance as well: the gap is part of the file.
    let flags = "--sequential 1";
    build(&fixture, "grown.gguf", &format!("{flags} --layers 0-1"));
    build(&fixture, "grown.gguf", &format!("{flags} --resume"));
    assert!(fixture.bytes("grown.gguf") == fixture.bytes("free.gguf"));
}

/// Products large enough that they are split.
#[test]
fn neither_threads_nor_the_environment_change_the_bytes() {
    let model = Model { n_embd: 128, n_ff: 768, n_vocab: 1200, ..Model::default() };
    let fixture = fixture_of(&model, 20);
    let flags = "--tune 3 --sequential 1 --token-weights curvature";
    build(&fixture, "one.gguf", &format!("{flags} -t 1"));
    for (threads, split) in [("2", "1"), ("3", "7"), ("8", "2")] {
        let command = format!("{BUILD} -o out.gguf --force {flags} -t {threads}");
        succeeds(fixture.plain(&command).env("RAYON_NUM_THREADS", split));
        assert!(fixture.bytes("out.gguf") == fixture.bytes("one.gguf"), "-t {threads}, {split}");
    }
}

#[test]
fn another_kind_of_machine_is_told_of_and_recorded() {
    let fixture = fixture();
    let flags = "--tune 4000 --tune-contexts 2";
    killed_at(&fixture, "out.gguf", flags, "tuning step 2 of 4000");
    let manifest = fixture.path("out.gguf.statecells-work/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let own = record["machines"][0].as_str().unwrap().to_owned();
    for part in [std::env::consts::ARCH, "ggml for", "first cache of"] {
        assert!(own.contains(part), "{own}");
    }
    record["machines"] = serde_json::json!(["x86_64 of another kind"]);
    std::fs::write(&manifest, record.to_string()).unwrap();
    let resume = || fixture.plain(&format!("{BUILD} -o out.gguf --resume"));
    let dry = common::stderr(&succeeds(resume().arg("--dry-run")));
    for said in [dry, common::stderr(&succeeds(&mut resume()))] {
        let warning = said.lines().find(|l| l.contains("warning")).unwrap();
        for part in ["out.gguf", "x86_64 of another kind", own.as_str(), "last bits"] {
            assert!(warning.contains(part), "{warning}");
        }
    }
    let file = GgufFile::open(&fixture.path("out.gguf")).unwrap();
    let record: builder::Record =
        serde_json::from_str(&file.string(format::keys::RECORD).unwrap().unwrap()).unwrap();
    assert!(record.machines.len() == 2 && record.machines.contains(&own));
    // On one machine nothing is said.
    killed_at(&fixture, "same.gguf", flags, "tuning step 2 of 4000");
    let same = fixture.plain(&format!("{BUILD} -o same.gguf --resume")).output().unwrap();
    assert!(same.status.success() && !common::stderr(&same).contains("warning"));
}

/// The next build on the same text gives the bytes that it gives alone.
#[test]
fn kept_states_serve_builds_of_other_sizes() {
    let fixture = fixture();
    let other = |output: &str, more: &str| {
        let flags = format!("--sequential 1 {more}");
        let command = BUILD.replace("--S 2", "--S 3");
        succeeds(&mut fixture.plain(&format!("{command} -o {output} {flags}")));
    };
    other("alone.gguf", "");
    build(&fixture, "kept.gguf", "--sequential 1 --keep-states");
    let states = fixture.bytes("kept.states");
    assert!(states.iter().any(|byte| *byte != 0));
    other("kept.gguf", "--keep-states --force");
    assert!(fixture.bytes("kept.gguf") == fixture.bytes("alone.gguf"));
    assert!(fixture.bytes("kept.states") == states);
    // Of another text, or no such file at all.
    let refused = |output: &str, flags: &str, parts: &[&str]| {
        fails(&mut command(&fixture, output, &format!("{flags} --keep-states --force")), 1, parts);
    };
    let another = ["--keep-states", "kept.states", "remove it"];
    write_calibration(&fixture, "calib.gguf", calibration_of(20));
    refused("kept.gguf", "--sequential 1", &another);
    std::fs::write(fixture.path("kept.states"), "mine").unwrap();
    refused("kept.gguf", "--sequential 1", &another);
    assert_eq!(fixture.bytes("kept.states"), b"mine");
    refused("out.gguf", "--sequential 0", &["--keep-states", "--sequential 1"]);
    refused("out.states", "--sequential 1", &["--keep-states", "-o"]);
}

/// The last layers of gemma3n read keys and values of an earlier one, which no file of hidden states holds.
#[test]
fn states_of_a_model_that_shares_keys_are_refused_before_the_work() {
    let fixture = Fixture::small();
    fixtures::architectures::write("gemma3n", &fixture.path("model.gguf")).unwrap();
    write_calibration(&fixture, "calib.gguf", Made { n_layers: 0, ..calibration_of(40) });
    let mut command = command(&fixture, "out.gguf", "--sequential 1 --keep-states --dry-run");
    fails(&mut command, 1, &["--keep-states", "share keys", "leave the flag out"]);
    assert_eq!(fixture.names(), ["calib.gguf", "model.gguf"]);
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
    let usage = fixture.plain(&format!("{BUILD} -o out.gguf --token-weights curvature")).output();
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
    let mut command = arcee.plain(&format!("{BUILD} -o out.gguf --tune 1"));
    fails(&mut command, 1, &["--tune: ", "model.gguf", "arcee"]);
    let weights = "--sequential 1 --token-weights curvature";
    let mut command = arcee.plain(&format!("{BUILD} -o out.gguf {weights}"));
    fails(&mut command, 1, &["--token-weights: ", "model.gguf", "arcee"]);
    // Neither needs gradients of the whole model.
    build(&arcee, "out.gguf", "--sequential 1 --tune-ffn 2");
    let usage =
        fixture.plain("-i model.gguf -o out.gguf --scheme sections --no-calib --tune 3").output();
    assert_eq!(usage.unwrap().status.code(), Some(2));
}
