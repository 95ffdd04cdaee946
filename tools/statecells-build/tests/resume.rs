//! Killed, stopped, grown, damaged: `--resume` ends with the bytes of an uninterrupted run.

mod common;

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use builder::report::{BuildReport, Origin};
use common::{Fixture, fails, stderr, succeeds};
use fixtures::models::Model;

const WORK: &str = "out.gguf.statecells-work";

/// Enough tensors that a run can be interrupted between them.
fn long_model() -> Model {
    Model { n_layers: 6, ..Model::default() }
}

/// Flags that make every tensor take some milliseconds.
const SLOW: &str = "-i model.gguf -o out.gguf --dict-max-samples 192 --encoder omp";

fn spawn(fixture: &Fixture, flags: &str) -> Child {
    fixture.quick(flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the work folder holds `n` finished tensors.
fn wait_for_checkpoints(fixture: &Fixture, n: usize) {
    let start = Instant::now();
    loop {
        let names = fs::read_dir(fixture.path(WORK)).into_iter().flatten().flatten();
        let is_checkpoint = |e: &fs::DirEntry| e.path().extension().is_some_and(|e| e == "tensor");
        if names.filter(is_checkpoint).count() >= n {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, signal: &str) {
    let status =
        std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

fn origins(fixture: &Fixture, report: &str) -> Vec<Origin> {
    let report: BuildReport = serde_json::from_slice(&fixture.bytes(report)).unwrap();
    report.tensors.iter().map(|t| t.origin).collect()
}

/// Pseudo-random numbers for moments to kill at; the same in every run.
fn moments(n: usize) -> impl Iterator<Item = f64> {
    let mut state = 12345u64;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
    .take(n)
}

#[test]
fn killed_at_any_moment_a_build_goes_on_to_the_same_bytes() {
    let fixture = Fixture::new(&long_model());
    let start = Instant::now();
    succeeds(&mut fixture.quick(SLOW));
    let mut window = start.elapsed();
    let expected = fixture.bytes("out.gguf");
    let mut n_kills = 0;
    for (round, every) in [1, 1, 3, 100].into_iter().enumerate() {
        fs::remove_file(fixture.path("out.gguf")).unwrap();
        for moment in moments(6 * (round + 1)).skip(6 * round) {
            let mut child = spawn(&fixture, &format!("{SLOW} --resume --checkpoint-every {every}"));
            std::thread::sleep(window.mul_f64(moment * 0.7));
            let met = child.try_wait().unwrap().is_none();
            n_kills += usize::from(met);
            child.kill().unwrap();
            child.wait().unwrap();
            if !met {
                // The first run may have been slowed down by other tests: aim earlier.
                window /= 2;
            }
            // What stands under the final name is always complete.
            if fixture.path("out.gguf").exists() {
                assert!(fixture.bytes("out.gguf") == expected);
                fs::remove_file(fixture.path("out.gguf")).unwrap();
            }
        }
        succeeds(&mut fixture.quick(&format!("{SLOW} --resume")));
        assert!(fixture.bytes("out.gguf") == expected, "round {round} ended with other bytes");
        assert_eq!(fixture.names(), ["model.gguf", "out.gguf"]);
    }
    assert!(n_kills >= 8, "only {n_kills} of 24 kills met a running build");
}

#[test]
fn a_signal_finishes_the_tensor_in_hand_and_says_how_to_go_on() {
    let fixture = Fixture::new(&long_model());
    succeeds(&mut fixture.quick(SLOW));
    let expected = fixture.bytes("out.gguf");
    for name in ["-INT", "-TERM"] {
        fs::remove_file(fixture.path("out.gguf")).unwrap();
        let child = spawn(&fixture, SLOW);
        wait_for_checkpoints(&fixture, 2);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(130), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.contains("of 18 tensors are finished") && last.contains("--resume"), "{text}");
        assert!(!fixture.path("out.gguf").exists());
        succeeds(&mut fixture.quick(&format!("{SLOW} --resume --report-json r.json")));
        assert_eq!(fixture.bytes("out.gguf"), expected);
        assert!(origins(&fixture, "r.json").contains(&Origin::Checkpoint));
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    let fixture = Fixture::new(&Model { n_embd: 512, n_ff: 2048, ..Model::default() });
    let mut command = fixture
        .plain("-i model.gguf -o out.gguf --row-scale --dict-M 512 --dict-k 64 --encoder omp -t 1");
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !fixture.path(WORK).exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the build did not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(50));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(stderr(&output).contains("a second signal stops at once"));
    assert!(!fixture.path("out.gguf").exists());
}

#[test]
fn an_output_grows_to_what_one_run_would_have_written() {
    let fixture = Fixture::new(&long_model());
    fixture.build("one.gguf", "");
    fixture.build("out.gguf", "--layers 2-3 --targets up,down");
    fixture.build("out.gguf", "--layers 0 --targets gate --resume");
    fixture.build("out.gguf", "--resume --report-json r.json -t 2");
    assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("one.gguf"));
    let origins = origins(&fixture, "r.json");
    assert_eq!(origins.iter().filter(|o| **o == Origin::Output).count(), 5);
    // Nothing is left to do, and nothing changes.
    fixture.build("out.gguf", "--resume");
    assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("one.gguf"));
}

#[test]
fn dense_tensors_and_dense_copies_are_taken_over() {
    let fixture = Fixture::small();
    fixture.build("probe.gguf", "--report-json probe.json");
    let report: BuildReport = serde_json::from_slice(&fixture.bytes("probe.json")).unwrap();
    let mut gaps: Vec<f64> = report.tensors.iter().map(|t| t.gap_recorded.unwrap()).collect();
    gaps.sort_by(f64::total_cmp);
    for flags in [format!("--gap-tol {}", (gaps[2] + gaps[3]) / 2.0), "--dense keep".to_owned()] {
        fixture.build("one.gguf", &format!("{flags} --force"));
        fixture.build("out.gguf", &format!("{flags} --layers 0 --force"));
        fixture.build("out.gguf", &format!("{flags} --resume --report-json r.json"));
        assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("one.gguf"), "{flags}");
        assert_eq!(origins(&fixture, "r.json")[..3], [Origin::Output; 3]);
    }
}

#[test]
fn a_missing_row_scale_is_completed_without_learning_again() {
    let fixture = Fixture::small();
    fixture.build("sign.gguf", "--scheme sign");
    fs::copy(fixture.path("sign.gguf"), fixture.path("out.gguf")).unwrap();
    fixture.build("out.gguf", "--scheme sign+row_scale --resume --report-json r.json");
    assert_eq!(origins(&fixture, "r.json"), [Origin::Completed; 6]);
    let [sign, out] = ["sign.gguf", "out.gguf"]
        .map(|name| ggml::gguf::GgufFile::open(&fixture.path(name)).unwrap());
    for suffix in ["dict", "codes"] {
        let name = format!("blk.1.ffn_up.{suffix}");
        let data = |f: &ggml::gguf::GgufFile| f.data(f.tensor(&name).unwrap()).to_vec();
        assert_eq!(data(&sign), data(&out), "{name}");
    }
    assert!(out.tensor("blk.1.ffn_up.row_scale").is_some());
    // Scales chosen by least squares cannot make a tensor worse.
    let gap = |f: &ggml::gguf::GgufFile| f.f32("statecells.blk.1.ffn_up.gap").unwrap().unwrap();
    assert!(gap(&out) <= gap(&sign) + 1e-3, "{} {}", gap(&out), gap(&sign));
    // The other way round nothing can be taken away.
    let back = "-i model.gguf -o out.gguf --scheme sign --resume";
    fails(&mut fixture.quick(back), 1, &["--scheme is sign", "was made with sign+row_scale"]);
}

#[test]
fn a_killed_sign_build_can_go_on_with_row_scales() {
    let fixture = Fixture::new(&long_model());
    let mut child = spawn(&fixture, &format!("{SLOW} --scheme sign"));
    wait_for_checkpoints(&fixture, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(&mut fixture.quick(&format!("{SLOW} --resume --report-json r.json")));
    let origins = origins(&fixture, "r.json");
    assert!(
        origins.contains(&Origin::Completed) && origins.contains(&Origin::Built),
        "{origins:?}"
    );
}

#[test]
fn a_damaged_checkpoint_is_done_again() {
    let fixture = Fixture::new(&long_model());
    succeeds(&mut fixture.quick(SLOW));
    let expected = fixture.bytes("out.gguf");
    fs::remove_file(fixture.path("out.gguf")).unwrap();
    let mut child = spawn(&fixture, SLOW);
    wait_for_checkpoints(&fixture, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    fixture.flip(&format!("{WORK}/blk.0.ffn_gate.tensor"), 900);
    succeeds(&mut fixture.quick(&format!("{SLOW} --resume --report-json r.json")));
    assert_eq!(fixture.bytes("out.gguf"), expected);
    assert_eq!(origins(&fixture, "r.json")[..2], [Origin::Built, Origin::Checkpoint]);
}

#[test]
fn a_damaged_tensor_of_the_output_is_done_again() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "");
    let expected = fixture.bytes("out.gguf");
    let file = ggml::gguf::GgufFile::open(&fixture.path("out.gguf")).unwrap();
    let at = file.tensor("blk.0.ffn_up.codes").unwrap().offset() + 11;
    drop(file);
    fixture.flip("out.gguf", at);
    fixture.build("out.gguf", "--resume --report-json r.json");
    assert_eq!(fixture.bytes("out.gguf"), expected);
    assert_eq!(origins(&fixture, "r.json").iter().filter(|o| **o == Origin::Built).count(), 1);
}

#[test]
fn other_parameters_are_refused_with_both_values() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "");
    let resume = "-i model.gguf -o out.gguf --resume";
    for (flags, parts) in [
        ("--seed 9", ["--seed is 9", "was made with 0"]),
        ("--dict-type f32", ["--dict-type is f32", "was made with f16"]),
        ("--dict-k-down 3", ["--dict-k-down is 3", "was made with 4"]),
        ("--gap-tol 0.5", ["--gap-tol is 0.5", "was made with not set"]),
        ("--dense keep", ["--dense is keep", "was made with drop"]),
        ("--scheme sign+vals", ["--scheme is sign+vals", "was made with sign+row_scale"]),
    ] {
        let mut parts = parts.to_vec();
        parts.extend(["out.gguf", "--force"]);
        fails(&mut fixture.quick(&format!("{resume} {flags}")), 1, &parts);
    }
    Model { seed: 2, ..Model::default() }.write(&fixture.path("model.gguf")).unwrap();
    fails(&mut fixture.quick(resume), 1, &["out.gguf", "another input"]);
    assert_eq!(fixture.names(), ["model.gguf", "out.gguf"]);
}

#[test]
fn a_work_folder_of_other_parameters_is_refused_and_kept() {
    let fixture = Fixture::new(&long_model());
    let mut child = spawn(&fixture, SLOW);
    wait_for_checkpoints(&fixture, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    fails(&mut fixture.quick(&format!("{SLOW} --resume --seed 5")), 1, &["--seed is 5", WORK]);
    fails(&mut fixture.quick(SLOW), 1, &[WORK, "--resume", "--force"]);
    succeeds(&mut fixture.quick(&format!("{SLOW} --resume --report-json r.json")));
    assert!(origins(&fixture, "r.json").contains(&Origin::Checkpoint));
}

#[test]
fn two_builds_of_one_output_do_not_mix() {
    let fixture = Fixture::new(&long_model());
    let child = spawn(&fixture, SLOW);
    wait_for_checkpoints(&fixture, 1);
    fails(&mut fixture.quick(&format!("{SLOW} --resume")), 1, &["another build"]);
    fails(&mut fixture.quick(&format!("{SLOW} --force")), 1, &["another build"]);
    assert!(child.wait_with_output().unwrap().status.success());
}
