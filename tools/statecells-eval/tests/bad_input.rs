//! Everything a user can get wrong: one line, naming what and the way out, before any time is spent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use fixtures::models::Model;
use format::{MatrixId, Role, keys};
use ggml::gguf::{GgufFile, GgufWriter};
use predicates::prelude::*;
use predicates::str::contains;
use program::files::write_atomically;
use tempfile::TempDir;

/// A folder with a model, a file that says it is coded, a text, and programs that only tell of their flags.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { folder: TempDir::new().unwrap() };
        Model::default().write(&fixture.path("base.gguf")).unwrap();
        fixture.write_coded("coded.gguf", &Model::default());
        fs::write(fixture.path("text.txt"), "some words ".repeat(300)).unwrap();
        fs::create_dir(fixture.path("bin")).unwrap();
        for name in ["llama-perplexity", "llama-bench", "llama-server", "llama-quantize"] {
            fixture.program(name, "case \"$*\" in *--help*) echo ' --statecells run';; *) echo 'error: broken on purpose' >&2; exit 7;; esac");
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A dense file that is marked as coded: enough for the checks, which read metadata.
    fn write_coded(&self, name: &str, model: &Model) {
        let up = MatrixId { layer: 0, role: Role::Up };
        let mark = |writer: &mut GgufWriter| writer.set(&keys::tensor_scheme(up), "sections");
        model.write_with(&self.path(name), mark, |_, _| {}).unwrap();
    }

    /// The program with the fixture's files; `changes` replace or add flags.
    fn run(&self, changes: &[(&str, &str)]) -> assert_cmd::assert::Assert {
        let mut flags: Vec<(String, String)> = [
            ("--base", self.path("base.gguf")),
            ("--sc", self.path("coded.gguf")),
            ("--text", self.path("text.txt")),
            ("--outdir", self.path("out")),
            ("--bin-dir", self.path("bin")),
        ]
        .map(|(flag, path)| (flag.to_owned(), path.display().to_string()))
        .to_vec();
        flags.extend([("--ctx".into(), "64".into()), ("--chunks".into(), "2".into())]);
        for (flag, value) in changes {
            flags.retain(|(f, _)| f != flag);
            flags.push(((*flag).to_owned(), (*value).to_owned()));
        }
        let mut command = Command::cargo_bin("statecells-eval").unwrap();
        command.args(flags.iter().flat_map(|(flag, value)| [flag, value]));
        command.assert()
    }

    /// Checks that a run with `changes` is refused in one line that holds `parts`.
    fn refused(&self, changes: &[(&str, &str)], parts: &[&str]) {
        let assert = self.run(changes).code(1).stdout("");
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in ["statecells-eval: error: "].iter().chain(parts) {
            assert!(stderr.contains(part), "no '{part}' in: {stderr}");
        }
    }
}

#[test]
fn types_that_need_an_importance_matrix_and_files_that_are_none() {
    let fixture = Fixture::new();
    let parts = ["--against", "IQ3_XXS", "--imatrix", "llama-imatrix"];
    fixture.refused(&[("--against", "Q4_K_M,IQ3_XXS")], &parts);
    let base = fixture.path("base.gguf");
    let parts = ["base.gguf", "no importance matrix"];
    fixture.refused(&[("--imatrix", base.to_str().unwrap())], &parts);
}

#[test]
fn a_text_shorter_than_a_chunk() {
    let fixture = Fixture::new();
    fs::write(fixture.path("text.txt"), "short").unwrap();
    fixture.refused(&[], &["text.txt: has ", "at least 128", "--ctx"]);
}

#[test]
fn files_that_are_not_there_or_no_models() {
    let fixture = Fixture::new();
    fixture.refused(&[("--base", "/no/base.gguf")], &["/no/base.gguf: cannot read"]);
    fixture.refused(&[("--text", "/no/text.txt")], &["/no/text.txt: cannot read"]);
    let text = fixture.path("text.txt").display().to_string();
    fixture.refused(&[("--sc", &text)], &["text.txt: "]);
    let cut = fixture.path("cut.gguf");
    let bytes = fs::read(fixture.path("coded.gguf")).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 1000]).unwrap();
    fixture.refused(&[("--sc", cut.to_str().unwrap())], &["cut.gguf: ", "truncated"]);
}

#[test]
fn a_text_that_is_no_text() {
    let fixture = Fixture::new();
    let base = fixture.path("base.gguf").display().to_string();
    fixture.refused(&[("--text", &base)], &["base.gguf: byte ", "not UTF-8"]);
}

#[test]
fn files_in_the_wrong_places() {
    let fixture = Fixture::new();
    let (base, coded) = (fixture.path("base.gguf"), fixture.path("coded.gguf"));
    fixture.refused(&[("--sc", base.to_str().unwrap())], &["base.gguf: is not compressed", "--sc"]);
    fixture
        .refused(&[("--base", coded.to_str().unwrap())], &["coded.gguf: is compressed", "--base"]);
}

#[test]
fn another_vocabulary() {
    let fixture = Fixture::new();
    fixture.write_coded("other.gguf", &Model { n_vocab: 290, ..Model::default() });
    let other = fixture.path("other.gguf");
    fixture.refused(
        &[("--sc", other.to_str().unwrap())],
        &["other.gguf: its vocabulary differs", "base.gguf", "--base"],
    );
}

#[test]
fn programs_that_are_missing_or_do_not_know_coded_files() {
    let fixture = Fixture::new();
    fixture.program("llama-bench", "echo usage");
    fixture.refused(&[], &["llama-bench: ", "does not know --statecells", "--bin-dir"]);
    fs::remove_file(fixture.path("bin/llama-bench")).unwrap();
    fixture.refused(&[], &["llama-bench: not found", "--bin-dir"]);
}

#[test]
fn an_output_folder_that_cannot_be_written() {
    let fixture = Fixture::new();
    let file = fixture.path("text.txt").join("out").display().to_string();
    fixture.refused(&[("--outdir", &file)], &["out: cannot make the folder"]);
}

#[test]
fn prompts_and_calibrations_that_are_none() {
    let fixture = Fixture::new();
    let text = fixture.path("text.txt").display().to_string();
    fixture.refused(&[("--prompts", &text)], &["text.txt: no prompts"]);
    fixture.refused(&[("--calib", &text)], &["text.txt: "]);
}

#[test]
fn wrong_flags_are_wrong_usage() {
    let fixture = Fixture::new();
    for (flag, value) in
        [("--against", "Q9"), ("--ctx", "4"), ("--chunks", "0"), ("--ctk", "q5_K"), ("--skip", "x")]
    {
        fixture.run(&[(flag, value)]).code(2).stderr(contains(flag));
    }
    Command::cargo_bin("statecells-eval").unwrap().assert().code(2);
}

/// Programs that fail: every measurement says so with the program's own reason, and the report is there.
#[test]
fn failed_measurements_are_part_of_the_report() {
    let fixture = Fixture::new();
    fixture.run(&[]).code(1).stderr(contains("broken on purpose")).stdout(contains("NOT DECIDED"));
    let json = fs::read(fixture.path("out/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let failure = &report["files"][0]["perplexity"]["failure"];
    assert!(failure.as_str().unwrap().contains("broken on purpose"), "{failure}");
    assert!(report["verdict"]["passed"].is_null());
    assert!(report["files"][0]["sizes"]["value"]["ffn_bytes"].as_u64().unwrap() > 0);
    let html = fs::read_to_string(fixture.path("out/report.html")).unwrap();
    assert!(html.contains("broken on purpose") && html.contains("NOT MEASURED"));
    let log = fs::read_to_string(fixture.path("out/perplexity_base.log")).unwrap();
    assert!(log.contains("broken on purpose"));
    assert!(!fixture.path("out/report.json.tmp").exists());
}

/// The page can be made anew from the report alone.
#[test]
fn a_page_from_a_report() {
    let fixture = Fixture::new();
    fixture.run(&[]).code(1);
    let (json, html) = (fixture.path("out/report.json"), fixture.path("out/report.html"));
    let first = fs::read(&html).unwrap();
    fs::remove_file(&html).unwrap();
    let again = |path: &Path| {
        let mut command = Command::cargo_bin("statecells-eval").unwrap();
        command.arg("--page").arg(path).assert()
    };
    again(&json).success();
    assert_eq!(fs::read(&html).unwrap(), first);
    write_atomically(&json, b"{}").unwrap();
    again(&json).code(1).stderr(contains("no report of this program").and(contains("report.json")));
    assert!(GgufFile::open(&fixture.path("base.gguf")).is_ok(), "inputs are left alone");
}

/// Reports of one base and text stand side by side; those of others are refused before anything is written.
#[test]
fn a_comparison_of_reports() {
    let fixture = Fixture::new();
    let sample =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/evaluation-report.json");
    let text = fs::read_to_string(sample).unwrap();
    let mut report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (first, second, out) =
        (fixture.path("first.json"), fixture.path("second.json"), fixture.path("sizes"));
    fs::write(&first, &text).unwrap();
    report["files"][1]["path"] = "other.gguf".into();
    fs::write(&second, report.to_string()).unwrap();
    let compare = || {
        let mut command = Command::cargo_bin("statecells-eval").unwrap();
        command.arg("--compare").args([&first, &second]).arg("--outdir").arg(&out).assert()
    };
    compare().success().stdout(contains("other").and(contains("comparison.html")));
    for name in ["comparison.html", "perplexity.svg", "divergence.svg"] {
        assert!(fs::read_to_string(out.join(name)).unwrap().contains("<svg"), "{name}");
    }
    report["text"]["sha256"] = "0".into();
    fs::write(&second, report.to_string()).unwrap();
    fs::remove_dir_all(&out).unwrap();
    compare().code(1).stderr(contains("second.json: another text"));
    assert!(!out.exists());
}
