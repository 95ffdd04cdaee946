//! `--calib`: fitted to activations, measured on others, and never to those of another model.

mod common;

use std::fs;

use builder::Source;
use builder::report::{ActivationErrors, BuildReport};
use common::calibration::{Made, write_calibration};
use common::{Fixture, fails, stdout, succeeds};
use fixtures::models::{Model, write_imatrix};
use format::Role;
use ggml::gguf::GgufFile;

/// The scheme with the least work.
const SECTIONS: &str = "--scheme sections --S 4 --rounds 1 --beam 4";

fn calibrated(made: Made) -> Fixture {
    let fixture = Fixture::small();
    write_calibration(&fixture, "calib.gguf", made);
    fixture
}

/// A build of `model.gguf` with the scheme `sections`.
fn build(fixture: &Fixture, output: &str, flags: &str) -> String {
    let flags = format!("-i model.gguf -o {output} {SECTIONS} {flags}");
    let threads = if flags.contains("-t ") { "" } else { "-t 1" };
    stdout(&succeeds(&mut fixture.plain(&format!("{flags} {threads}"))))
}

fn report(fixture: &Fixture, name: &str) -> BuildReport {
    serde_json::from_slice(&fixture.bytes(name)).unwrap()
}

/// Data of all sidecars.
fn sidecars(fixture: &Fixture, name: &str) -> Vec<(String, Vec<u8>)> {
    let file = GgufFile::open(&fixture.path(name)).unwrap();
    let ffn = file.tensors().iter().filter(|t| t.name().contains(".ffn_"));
    ffn.map(|t| (t.name().to_owned(), file.data(t).to_vec())).collect()
}

#[test]
fn fitting_to_activations_lowers_the_error_on_others() {
    let fixture = calibrated(Made::default());
    let flags = "--calib calib.gguf --eval-plain --report-json r.json";
    let text = build(&fixture, "out.gguf", flags);
    let report = report(&fixture, "r.json");
    let file = GgufFile::open(&fixture.path("out.gguf")).unwrap();
    for tensor in &report.tensors {
        let functional = tensor.functional.unwrap();
        let (coded, plain) = (functional.coded, functional.plain.unwrap());
        let held_out = |e: ActivationErrors| e.error_held_out.unwrap();
        assert!(held_out(coded) < 0.7 * held_out(plain), "{}: {functional:?}", tensor.name);
        assert!(coded.error_held_out_tokens < plain.error_held_out_tokens, "{functional:?}");
        assert!(functional.shrink.is_some() && !functional.overfitted);
        let stem = tensor.name.trim_end_matches(".weight");
        let gap = file.f32(&format!("statecells.{stem}.gap")).unwrap().unwrap();
        assert_eq!(gap, held_out(coded).sqrt() as f32);
        assert!((tensor.gap_recorded.unwrap() / f64::from(gap) - 1.0).abs() < 1e-12);
    }
    let total = report.totals.functional.unwrap();
    let mean = report.tensors.iter().map(|t| t.functional.unwrap().coded.error_fitted.unwrap());
    let mean = mean.sum::<f64>() / report.tensors.len() as f64;
    assert!((total.coded.error_fitted.unwrap() - mean).abs() < 1e-12);
    for column in ["fitted", "held out", "by token", "shrink", "plain"] {
        assert!(text.lines().next().unwrap().contains(column), "{column}: {text}");
    }
}

#[test]
fn the_recorded_gap_decides_about_dense_weights() {
    let fixture = calibrated(Made::default());
    build(&fixture, "probe.gguf", "--calib calib.gguf --report-json probe.json");
    let mut gaps: Vec<f64> =
        report(&fixture, "probe.json").tensors.iter().map(|t| t.gap_recorded.unwrap()).collect();
    gaps.sort_by(f64::total_cmp);
    let flags = format!("--calib calib.gguf --gap-tol {} --report-json r.json", gaps[2]);
    build(&fixture, "out.gguf", &flags);
    assert_eq!(report(&fixture, "r.json").totals.n_coded, 3);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for samples_only in [false, true] {
        let fixture = calibrated(Made { samples_only, ..Made::default() });
        build(&fixture, "one.gguf", "--calib calib.gguf");
        for threads in [2, 4] {
            build(&fixture, "n.gguf", &format!("--calib calib.gguf --force -t {threads}"));
            assert!(fixture.bytes("n.gguf") == fixture.bytes("one.gguf"), "{threads} threads");
        }
    }
}

#[test]
fn samples_are_fitted_like_the_moment_they_are_of() {
    let errors = |samples_only| {
        let fixture = calibrated(Made { samples_only, ..Made::default() });
        build(&fixture, "out.gguf", "--calib calib.gguf --shrink 0 --report-json r.json");
        report(&fixture, "r.json").totals.functional.unwrap().coded.error_held_out.unwrap()
    };
    let (moments, samples) = (errors(false), errors(true));
    assert!((moments / samples - 1.0).abs() < 0.05, "{moments} {samples}");
}

#[test]
fn global_dictionaries_use_the_mean_squares() {
    let fixture = calibrated(Made::default());
    let mut entries = Vec::new();
    let calibration = calibration::Calibration::open(&fixture.path("calib.gguf")).unwrap();
    for tensor in Source::open(&fixture.path("model.gguf")).unwrap().matrices() {
        let mean_squares = calibration.input(tensor.input()).unwrap().mean_squares();
        entries.push((tensor.weight(), mean_squares));
    }
    write_imatrix(&fixture.path("imatrix.gguf"), &entries, 1.0).unwrap();
    fixture.build("i.gguf", "--imatrix imatrix.gguf");
    fixture.build("c.gguf", "--calib calib.gguf");
    assert!(sidecars(&fixture, "i.gguf") == sidecars(&fixture, "c.gguf"));
}

#[test]
fn moments_of_long_inputs_are_used_in_spans() {
    let [from_moments, from_samples] = [false, true].map(|samples_only| {
        let fixture = calibrated(Made { samples_only, ..Made::default() });
        // held-out error of all ffn_down, whose inputs are longer than the others
        let down = |flags: &str| -> f64 {
            let shrink = if flags.contains("shrink") { "" } else { "--shrink 0" };
            let fixed = "--calib calib.gguf --report-json r.json --force";
            let flags = format!("{fixed} {shrink} {flags}");
            build(&fixture, "out.gguf", &flags);
            let tensors = report(&fixture, "r.json").tensors;
            let down = tensors.iter().filter(|t| t.name.contains("down"));
            down.map(|t| t.functional.unwrap().coded.error_held_out.unwrap()).sum()
        };
        let [whole, spans, diagonal] = ["", "--max-h-dim 64", "--shrink 1"].map(down);
        assert!(whole < spans && spans < diagonal, "{whole} {spans} {diagonal}");
        spans
    });
    assert!((from_moments / from_samples - 1.0).abs() < 0.05, "{from_moments} {from_samples}");
}

#[test]
fn too_little_text_is_flagged_and_shrinking_helps() {
    let fixture = calibrated(Made { n_fitted: 12, ..Made::default() });
    let flags = "--calib calib.gguf --damping 0.0001 --report-json r.json --force --shrink";
    let held_out = |shrink: &str| {
        let text = build(&fixture, "out.gguf", &format!("{flags} {shrink}"));
        let functional = report(&fixture, "r.json").totals.functional.unwrap();
        (functional.coded.error_held_out.unwrap(), functional.overfitted, text)
    };
    let (without, flagged, text) = held_out("0");
    assert!(flagged && text.contains(" ! "), "{text}");
    let (auto, ..) = held_out("auto");
    assert!(auto < 0.95 * without, "{auto} {without}");
}

#[test]
fn resume_goes_on_with_the_same_calibration_only() {
    let fixture = calibrated(Made::default());
    build(&fixture, "one.gguf", "--calib calib.gguf --report-json one.json");
    build(&fixture, "out.gguf", "--calib calib.gguf --layers 1");
    let resume = format!("-i model.gguf -o out.gguf {SECTIONS} -t 1 --resume");
    write_calibration(&fixture, "other.gguf", Made { seed: 2, ..Made::default() });
    let other = format!("{resume} --calib other.gguf");
    fails(
        &mut fixture.plain(&other),
        1,
        &["--resume: --calib is sha256:", "was made with sha256:"],
    );
    let without = format!("{resume} --no-calib");
    fails(&mut fixture.plain(&without), 1, &["--resume: --calib is not set"]);
    let shrink = format!("{resume} --calib calib.gguf --shrink 0.5");
    fails(&mut fixture.plain(&shrink), 1, &["--resume: --shrink is 0.5"]);
    build(&fixture, "out.gguf", "--calib calib.gguf --resume --report-json out.json");
    assert!(fixture.bytes("out.gguf") == fixture.bytes("one.gguf"));
    let coded = |name| -> Vec<_> {
        report(&fixture, name).tensors.iter().map(|t| t.functional.unwrap().coded).collect()
    };
    assert_eq!(coded("one.json"), coded("out.json"));
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let fixture = calibrated(Made::default());
    let flags = format!("-i model.gguf -o out.gguf {SECTIONS} -t 1");
    let with = |calib: &str| format!("{flags} --calib {calib}");
    let code_1 = |command: &str, parts: &[&str]| fails(&mut fixture.plain(command), 1, parts);
    code_1(&with("missing.gguf"), &["--calib", "missing.gguf"]);
    code_1(&with("model.gguf"), &["--calib", "no calibration file", "statecells-calib"]);
    write_calibration(&fixture, "first.gguf", Made { n_layers: 1, ..Made::default() });
    code_1(&with("first.gguf"), &["blk.1.ffn_gate", "for its layer too"]);
    succeeds(&mut fixture.plain(&format!("{} --layers 0 --force", with("first.gguf"))));
    fs::remove_file(fixture.path("out.gguf")).unwrap();
    fixture.flip("calib.gguf", fixture.bytes("calib.gguf").len() / 2 + 3);
    let output = fixture.plain(&with("calib.gguf")).output().unwrap();
    // A flipped bit may also leave a possible value; then the build goes on.
    let text = common::stderr(&output);
    assert!(output.status.success() || text.contains("make it again with statecells-calib"));
    let _ = fs::remove_file(fixture.path("out.gguf"));

    // The same shapes, other weights.
    write_calibration(&fixture, "calib.gguf", Made::default());
    Model { seed: 9, ..Model::default() }.write(&fixture.path("model.gguf")).unwrap();
    code_1(&with("calib.gguf"), &["made for another model (SHA-256"]);
    Model { n_ff: 256, ..Model::default() }.write(&fixture.path("model.gguf")).unwrap();
    code_1(&with("calib.gguf"), &["made for another model (n_ff"]);
    code_1(&format!("{} --dry-run", with("calib.gguf")), &["made for another model (n_ff"]);
    assert!(!fixture.path("out.gguf").exists());
    assert!(!fixture.path("out.gguf.statecells-work").exists());
}

#[test]
fn wrong_usage_exits_with_2() {
    let fixture = Fixture::small();
    for flags in [
        "--calib c.gguf --imatrix i.gguf",
        "--no-calib --shrink 0.1",
        "--no-calib --damping 0.1",
        "--no-calib --max-h-dim 9",
        "--no-calib --eval-plain",
        "--calib c.gguf --shrink 2",
        "--calib c.gguf --shrink often",
    ] {
        let flags = format!("-i model.gguf -o out.gguf --scheme sections {flags}");
        let output = fixture.plain(&flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
}

#[test]
fn a_layer_is_coded_alike_whatever_is_coded_with_it() {
    let fixture = calibrated(Made::default());
    build(&fixture, "all.gguf", "--calib calib.gguf");
    build(&fixture, "up.gguf", "--calib calib.gguf --layers 1 --targets up");
    let stem = format::MatrixId { layer: 1, role: Role::Up }.stem() + ".";
    let of = |name| -> Vec<_> {
        let all = sidecars(&fixture, name).into_iter();
        all.filter(|(name, _)| name.starts_with(&stem)).collect()
    };
    assert!(of("all.gguf").len() >= 3 && of("all.gguf") == of("up.gguf"));
}
