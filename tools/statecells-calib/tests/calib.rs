//! The program on small random models: what it writes, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin;
use calibration::{Calibration, ModelId, TextSketch};
use format::{MatrixId, Role};
use predicates::prelude::*;
use tempfile::TempDir;

/// A folder with a model and texts.
struct Setup(TempDir);

impl Setup {
    fn new() -> Self {
        let setup = Self(tempfile::tempdir().unwrap());
        fixtures::models::Model::default().write(&setup.at("model.gguf")).unwrap();
        fs::write(setup.at("text.txt"), prose(60)).unwrap();
        setup
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with model, text, output and short contexts.
    fn program(&self) -> Command {
        self.program_for(1280, 1)
    }

    /// With one thread, tests running side by side do not wait for each other's.
    fn program_for(&self, tokens: usize, n_threads: usize) -> Command {
        let mut command = self.bare();
        command.args(["-t", &n_threads.to_string()]);
        command.args(["-m", "model.gguf", "-f", "text.txt", "-o", "calib.gguf"]);
        command.args(["--ctx", "64", "--tokens", &tokens.to_string()]);
        command
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(cargo_bin!("statecells-calib"));
        command.current_dir(self.0.path());
        command
    }

    /// Runs the program, which must fail with `code` and one line like `message`, leaving nothing.
    fn refuses(&self, command: &mut Command, code: i32, message: &str) {
        let before = self.files();
        let result = command.assert().code(code);
        let stderr = String::from_utf8(result.get_output().stderr.clone()).unwrap();
        let error = stderr.lines().find(|line| line.contains("error: ")).unwrap_or("");
        assert!(matches(error, message), "{stderr}");
        if code == 1 {
            assert!(stderr.ends_with(&format!("{error}\n")), "one line at the end: {stderr}");
            let parts: Vec<&str> = error.split(": ").filter(|part| part.len() > 8).collect();
            let twice = parts.iter().enumerate().find(|(i, part)| parts[..*i].contains(part));
            assert_eq!(twice, None, "the reason is said twice: {error}");
            for foreign in [" -i", "--report-json"] {
                assert!(!error.contains(foreign), "{foreign} is no flag of this program: {error}");
            }
        }
        assert_eq!(self.files(), before, "nothing is left behind");
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }

    fn open(&self) -> Calibration {
        Calibration::open(&self.at("calib.gguf")).unwrap()
    }
}

/// Whether `text` holds the parts of `pattern` between its stars, in order.
fn matches(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    parts.try_fold(text, |rest, part| rest.split_once(part).map(|(_, rest)| rest)).is_some()
}

fn prose(n_lines: usize) -> String {
    (0..n_lines).map(|i| format!("Line {i} of a text that nobody will read.\n")).collect()
}

fn up(layer: usize) -> MatrixId {
    MatrixId { layer, role: Role::Up }
}

#[test]
fn a_calibration_covers_all_layers_and_says_where_it_comes_from() {
    let setup = Setup::new();
    setup
        .program()
        .assert()
        .success()
        .stdout(predicate::str::contains("fitted").and(predicate::str::contains("GFLOP")));
    let calibration = setup.open();
    for layer in 0..2 {
        for role in Role::PLAIN {
            let input = calibration.input(MatrixId { layer, role }.input()).unwrap();
            assert_eq!(input.d(), if role == Role::Down { 192 } else { 64 });
            assert!(input.second_moment().is_some() && input.holdout_moment().is_some());
        }
    }
    let provenance = calibration.provenance();
    assert_eq!(
        (provenance.n_fitted, provenance.n_held_out, provenance.n_ctx),
        (18 * 64, 2 * 64, 64)
    );
    assert_eq!(provenance.texts[0].name, "text.txt");
    assert_eq!(provenance.texts[0].sha256.len(), 64);
    assert_ne!(provenance.sketch, TextSketch::default());
    let model = &provenance.model;
    assert_eq!((model.n_layer, model.n_embd, model.n_ff), (2, 64, 192));
    calibration.check_model(model).unwrap();
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_names_of_folders() {
    let (a, b) = (Setup::new(), Setup::new());
    a.program().assert().success();
    b.program_for(1280, 2).args(["--time-plain", "2"]).assert().success();
    assert_eq!(fs::read(a.at("calib.gguf")).unwrap(), fs::read(b.at("calib.gguf")).unwrap());
    b.program().args(["--seed", "1", "--force", "--max-holdout", "5"]).assert().success();
    assert_ne!(fs::read(a.at("calib.gguf")).unwrap(), fs::read(b.at("calib.gguf")).unwrap());
    assert_eq!(b.open().input(up(0).input()).unwrap().holdout.len(), 5);
}

#[test]
fn the_text_is_written_down_without_running_the_model() {
    let setup = Setup::new();
    setup.program().assert().success();
    let run = setup.open().provenance().clone();
    let text = setup.program().args(["--tokens-only", "--force"]).assert().success();
    text.stdout(predicate::str::contains("fitted").and(predicate::str::contains("pass").not()));
    let calibration = setup.open();
    assert!(calibration.provenance() == &run && run.tokens.len() == 20 * 64);
    assert!(!calibration.has_inputs() && !calibration.covers(up(0).input()));
    for flags in [["--layers", "0"], ["--max-samples", "5"], ["--time-plain", "1"]] {
        let mut command = setup.program();
        setup.refuses(command.args(["--tokens-only"]).args(flags), 2, "cannot be used with");
    }
}

#[test]
fn another_models_calibration_is_refused_by_the_library() {
    let setup = Setup::new();
    setup.program().assert().success();
    let own = setup.open().provenance().model.clone();
    fixtures::models::Model { seed: 2, ..Default::default() }
        .write(&setup.at("model.gguf"))
        .unwrap();
    fs::rename(setup.at("calib.gguf"), setup.at("first.gguf")).unwrap();
    setup.program().assert().success();
    let other = setup.open().provenance().model.clone();
    assert_eq!(ModelId { sha256: own.sha256.clone(), ..other.clone() }, own);
    let first = Calibration::open(&setup.at("first.gguf")).unwrap();
    first.check_model(&own).unwrap();
    let message = first.check_model(&other).unwrap_err().to_string();
    assert!(message.contains("first.gguf: was made for another model (SHA-256"), "{message}");
}

#[test]
fn layers_long_inputs_and_several_files_of_any_kind() {
    let setup = Setup::new();
    let line = r#"{"messages":[{"role":"user","content":"What is it?"},{"role":"assistant","content":"It is."}]}"#;
    fs::write(setup.at("chat.jsonl"), format!("{line}\n").repeat(20)).unwrap();
    setup
        .program()
        .args(["-f", "chat.jsonl", "--layers", "1", "--max-h-dim", "100", "--max-samples", "40"])
        .assert()
        .success();
    let calibration = setup.open();
    assert!(!calibration.covers(up(0).input()) && calibration.covers(up(1).input()));
    let down = calibration.input(MatrixId { layer: 1, role: Role::Down }.input()).unwrap();
    assert_eq!(down.fitted_samples().unwrap().len(), 40);
    assert_eq!(calibration.provenance().texts.len(), 2);
    // The same lines as conversations, whatever the file is called.
    fs::copy(setup.at("chat.jsonl"), setup.at("chat.txt")).unwrap();
    let chat = |name: &str, flags: &[&str]| {
        let mut command = setup.bare();
        command.args([
            "-m",
            "model.gguf",
            "-o",
            "calib.gguf",
            "--force",
            "--ctx",
            "64",
            "-f",
            name,
        ]);
        command.args(["--tokens", "1280"]).args(flags).assert().success();
        setup.open().provenance().sketch.clone()
    };
    assert_eq!(chat("chat.txt", &["--chat"]), chat("chat.jsonl", &[]));
    assert_ne!(chat("chat.txt", &["--chat"]), chat("chat.txt", &[]));
}

#[test]
fn a_calibration_grows_by_more_text() {
    let setup = Setup::new();
    setup.program().assert().success();
    let before = setup.open();
    fs::write(setup.at("more.txt"), prose(25)).unwrap();
    let more = |flags: &[&str]| {
        let mut command = setup.bare();
        command.args([
            "-m",
            "model.gguf",
            "-f",
            "more.txt",
            "-o",
            "calib.gguf",
            "-t1",
            "--ctx",
            "64",
        ]);
        command.args(["--resume", "--tokens", "640"]).args(flags);
        command
    };
    setup.refuses(
        &mut more(&["--tokens-only"]),
        1,
        "--resume: calib.gguf holds what the model sees",
    );
    setup.refuses(&mut more(&["--seed", "5"]), 1, "--resume: *--seed 0: repeat them");
    setup.refuses(&mut more(&["--max-h-dim", "100"]), 1, "--resume: *another --max-h-dim");
    let mut none = setup.bare();
    none.args(["-m", "model.gguf", "-o", "none.gguf", "--resume"]);
    setup.refuses(&mut none, 1, "--resume: none.gguf: there is no such calibration");
    more(&[]).assert().success();
    let after = setup.open();
    let (old, new) = (before.provenance(), after.provenance());
    assert_eq!((old.tokens.len(), new.tokens.len()), (20 * 64, 30 * 64));
    assert_eq!((new.n_fitted, new.n_held_out), (27 * 64, 3 * 64));
    assert_eq!((new.texts.len(), &*new.texts[1].name), (2, "more.txt"));
    assert!(new.tokens.starts_with(&old.tokens));
    let input = up(1).input();
    let (a, b) = (before.input(input).unwrap(), after.input(input).unwrap());
    // Traces grow with every token, and nothing else changes what was there.
    let trace = |i: &calibration::CalibratedInput| match &i.fitted {
        calibration::Fitted::Moment(m) => {
            (m.n_tokens(), m.mean_squares().iter().sum::<f32>() * m.n_tokens() as f32)
        }
        calibration::Fitted::Samples(_) => unreachable!("short inputs have moments"),
    };
    let ((n_before, sum_before), (n_after, sum_after)) = (trace(&a), trace(&b));
    assert!(n_before == 18 * 64 && n_after == 27 * 64 && sum_after > sum_before);
    assert!(b.holdout.len() <= 512 && b.holdout.len() > a.holdout.len());
    // The model's own text goes on where it ended.
    let own = |output: &str, flags: &[&str]| {
        let mut command = setup.bare();
        command.args(["-m", "model.gguf", "-o", output, "-t1", "--ctx", "64", "--tokens-only"]);
        command.args(flags).assert().success();
        Calibration::open(&setup.at(output)).unwrap().provenance().clone()
    };
    let whole = own("whole.gguf", &["--tokens", "4096"]);
    own("grown.gguf", &["--tokens", "2048"]);
    let grown = own("grown.gguf", &["--tokens", "2048", "--resume"]);
    assert_eq!((whole.tokens == grown.tokens, grown.texts.len()), (true, 2));
    assert_eq!((whole.n_held_out, &whole.sketch), (grown.n_held_out, &grown.sketch));
}

#[test]
fn short_texts_are_used_with_a_warning_and_refused_below_eight_contexts() {
    let setup = Setup::new();
    setup.program_for(100_000, 1).assert().success().stderr(predicate::function(|text: &str| {
        matches(text, "warning: the text has * tokens, 100000 were asked for")
    }));
    fs::remove_file(setup.at("calib.gguf")).unwrap();
    fs::write(setup.at("text.txt"), prose(2)).unwrap();
    let message = "the text has * tokens, at least 504 are needed *give more text";
    setup.refuses(&mut setup.program(), 1, message);
    setup.refuses(&mut setup.program_for(511, 1), 1, "--tokens 511: at least 512");
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let setup = Setup::new();
    let run = |args: &[&str], message: &str| {
        setup.refuses(
            setup.bare().args(["-o", "calib.gguf", "--ctx", "64"]).args(args),
            1,
            message,
        );
    };
    fs::write(setup.at("latin.txt"), b"caf\xe9").unwrap();
    fs::write(setup.at("bad.jsonl"), "{}\n").unwrap();
    fs::write(setup.at("noise.gguf"), "noise").unwrap();
    let model = ["-m", "model.gguf"];
    run(&["-m", "none.gguf", "-f", "text.txt"], "none.gguf: *check the path");
    run(&["-m", "noise.gguf", "-f", "text.txt"], "noise.gguf: *give a complete GGUF file");
    run(&[&model[..], &["-f", "none.txt"]].concat(), "none.txt: check the path");
    run(&[&model[..], &["-f", "latin.txt"]].concat(), "latin.txt: byte 3 is not UTF-8");
    run(&[&model[..], &["-f", "bad.jsonl"]].concat(), "bad.jsonl: line 1: *messages");
    run(&["-m", "model.gguf", "-f", "model.gguf"], "model.gguf: byte * is not UTF-8");
    let text = ["-m", "model.gguf", "-f", "text.txt"];
    run(&[&text[..], &["--layers", "1-2"]].concat(), "--layers 1-2: the model has 2 layers");
    for (args, message) in [
        (["--ctx", "15"], "--ctx 15: choose 16 to 512"),
        (["--ctx", "513"], "--ctx 513: choose 16 to 512"),
    ] {
        setup.refuses(setup.program().args(args), 2, "cannot be used multiple times");
        let mut command = setup.bare();
        setup.refuses(command.args(["-o", "calib.gguf"]).args(text).args(args), 1, message);
    }
    setup.refuses(&mut setup.bare(), 2, "required");
    setup.refuses(&mut setup.program_for(1280, 0), 2, "threads");
}

#[test]
fn outputs_are_not_overwritten_by_accident() {
    let setup = Setup::new();
    fs::write(setup.at("calib.gguf"), "precious").unwrap();
    setup.refuses(
        &mut setup.program(),
        1,
        "calib.gguf: already exists: --resume adds to it, --force replaces it",
    );
    assert_eq!(fs::read(setup.at("calib.gguf")).unwrap(), b"precious");
    setup.program().arg("--force").assert().success();
    setup.open();
    let over = |name: &str| {
        let mut command = setup.bare();
        command.args(["-m", "model.gguf", "-f", "text.txt", "--force", "-o", name]);
        command
    };
    setup.refuses(&mut over("model.gguf"), 1, "-m and -o are the same file");
    setup.refuses(&mut over("text.txt"), 1, "-f and -o are the same file");
    setup.refuses(&mut over("no/such/folder"), 1, "no/such");
    setup.refuses(&mut over("."), 1, "name a file");
}

/// A text that takes a while: what is refused before it is read is refused at once.
fn long_text(setup: &Setup) {
    fs::write(setup.at("text.txt"), prose(6000)).unwrap();
}

#[test]
fn what_can_be_known_is_refused_before_the_model_runs() {
    let setup = Setup::new();
    long_text(&setup);
    fs::create_dir(setup.at("folder")).unwrap();
    let refuses = |args: &[&str], message: &str| {
        let mut command = setup.bare();
        command.args(["-m", "model.gguf", "-f", "text.txt", "-t1", "--tokens", "1000000"]);
        let command = command.args(args);
        setup.refuses(command, 1, message);
        let stderr = command.output().unwrap().stderr;
        assert_eq!(String::from_utf8(stderr).unwrap().lines().count(), 1, "{args:?}");
    };
    let long = "x".repeat(256);
    for kind in ["--force", "--tokens-only"] {
        refuses(&["-o", &long, kind], "too long*choose a shorter name");
        refuses(&["-o", "folder", kind], "folder: cannot write: *name a file");
        refuses(&["-o", "folder/none/c.gguf", kind], "folder/none: *check the path");
        refuses(&["-o", "text.txt/c.gguf", kind], "text.txt*ot a directory");
        refuses(&["-o", "/proc/calib.gguf", kind], "/proc: cannot write in this folder");
        refuses(&["-o", "c.gguf", kind, "--ctx", "513"], "--ctx 513: choose 16 to 512");
    }
    let mut few = setup.bare();
    few.args("-m model.gguf -f text.txt -o c.gguf --tokens 100".split(' '));
    setup.refuses(&mut few, 1, "--tokens 100: at least");
}

#[test]
fn the_longest_name_that_a_file_can_have_is_written() {
    let setup = Setup::new();
    let name = "x".repeat(255);
    let mut command = setup.bare();
    command.args(["-m", "model.gguf", "-f", "text.txt", "-t1", "--ctx", "64"]);
    command.args(["--tokens", "1280", "-o", &name]).assert().success();
    Calibration::open(&setup.at(&name)).unwrap();
    assert_eq!(setup.files().len(), 3);
}

#[test]
fn an_architecture_that_nothing_runs_is_not_calibrated() {
    let setup = Setup::new();
    let path = setup.at("model.gguf");
    let rename = |w: &mut ggml::gguf::GgufWriter| w.set("general.architecture", "of-tomorrow");
    fixtures::models::Model::default().write_with(&path, rename, |_, _| {}).unwrap();
    setup.refuses(&mut setup.program(), 1, "model.gguf: *'of-tomorrow' is unknown");
}

#[test]
fn folders_that_cannot_be_written_are_refused_before_the_work() {
    use std::os::unix::fs::PermissionsExt;
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        // Root may write anywhere else; no file can be made in /proc.
        let setup = Setup::new();
        let mut command = setup.bare();
        command.args(["-m", "model.gguf", "-f", "text.txt", "-o", "/proc/calib.gguf"]);
        setup.refuses(&mut command, 1, "/proc: cannot write in this folder");
        return;
    }
    let setup = Setup::new();
    let folder = setup.at("locked");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).unwrap();
    let mut command = setup.bare();
    command.args(["-m", "model.gguf", "-f", "text.txt", "-o", "locked/calib.gguf"]);
    setup.refuses(&mut command, 1, "locked: cannot write in this folder");
}

#[test]
fn damaged_models_are_refused() {
    let setup = Setup::new();
    let nan = |name: &str, values: &mut [f32]| {
        if name == "blk.1.ffn_norm.weight" {
            values[3] = f32::NAN;
        }
    };
    let path = setup.at("model.gguf");
    fixtures::models::Model::default().write_with(&path, |_| Ok(()), nan).unwrap();
    setup.refuses(&mut setup.program(), 1, "blk.1.ffn_in: *NaN");
}

/// A run that would take forever, at work on the model.
fn long_run(setup: &Setup) -> std::process::Child {
    fs::write(setup.at("text.txt"), prose(6000)).unwrap();
    let mut child = std::process::Command::new(cargo_bin!("statecells-calib"))
        .current_dir(setup.0.path())
        .args("-m model.gguf -f text.txt -o calib.gguf -t1 --tokens 1000000000".split(' '))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(child.stderr.as_mut().unwrap(), "contexts");
    child
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let setup = Setup::new();
    fs::write(setup.at("text.txt"), "").unwrap();
    let before = setup.files();
    let mut child = long_run(&setup);
    // SAFETY: the child is alive or not yet waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(setup.files(), before);
}

#[test]
fn a_model_that_is_cut_short_under_way_is_no_crash() {
    let setup = Setup::new();
    let mut child = long_run(&setup);
    let model = fs::OpenOptions::new().write(true).open(setup.at("model.gguf")).unwrap();
    model.set_len(4096).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!setup.at("calib.gguf").exists());
}

fn wait_for_line(from: &mut impl std::io::Read, text: &str) {
    use std::io::BufRead;
    let mut lines = std::io::BufReader::new(from).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(text)), "no line with '{text}'");
}

#[test]
fn help_names_every_flag_and_completions_are_printed() {
    let setup = Setup::new();
    let help = setup.bare().arg("--help").assert().success();
    let text = String::from_utf8(help.get_output().stdout.clone()).unwrap();
    for flag in ["--model", "--file", "--output", "--tokens", "--ctx", "--max-samples", "--layers"]
    {
        assert!(text.contains(flag), "{flag}");
    }
    setup
        .bare()
        .args(["--completions", "bash"])
        .assert()
        .success()
        .stdout(predicate::str::contains("statecells-calib"));
    assert!(Path::new(&setup.at("model.gguf")).exists());
}
