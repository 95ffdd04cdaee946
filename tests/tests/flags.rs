//! `--statecells` and `--statecells-gap` in all programs of llama.cpp that take them.

use std::path::{Path, PathBuf};

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused};
use end_to_end::server::Server;
use fixtures::models::Model;
use format::{MatrixId, Role, keys};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Gaps that the test writes into the files: the first layer is the bad one.
const GAPS: [f32; 2] = [0.9, 0.5];

/// A limit between them.
const LIMIT: &str = "0.7";

const GENERATE: &str = "-no-cnv -p hello -n 24 --temp 0 --ignore-eos -c 128 -t 2 --no-warmup";

/// Base model, coded model with and without the dense weights, and the dense models they equal.
struct Files {
    folder: TempDir,
    /// What is in `keep.gguf`.
    keep: ModelFile,
}

impl Files {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("base.gguf");
        Model::default().write(&path).unwrap();
        let base = ModelFile::read(&path);
        let with_gaps = |mut file: ModelFile| {
            for (layer, gap) in GAPS.into_iter().enumerate() {
                for role in Role::PLAIN {
                    file.set(&keys::tensor_gap(MatrixId { layer, role }), gap);
                }
            }
            file
        };
        let write = |name: &str, file: &ModelFile| file.write(&folder.path().join(name));
        let drop = Twins::of(&base, &Coding::default());
        write("drop.gguf", &with_gaps(drop.coded));
        write("dense.gguf", &drop.dense);
        let second = Coding { layers: vec![1], ..Coding::default() };
        write("second.gguf", &Twins::of(&base, &second).coded);
        let keep = Twins::of(&base, &Coding { keep_dense: true, ..Coding::default() });
        let keep = with_gaps(keep.coded);
        write("keep.gguf", &keep);
        Self { folder, keep }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, file: &str, flags: &str) -> Run {
        run(program, &self.path(file), flags)
    }

    /// The text that a model generates, as bytes.
    fn generated(&self, file: &str, flags: &str) -> Vec<u8> {
        self.run("llama-completion", file, &format!("{GENERATE} {flags}")).ok().stdout
    }

    /// Bytes of the tensors of `layer` whose last part of the name is among `suffixes`, as the log writes
    /// them.
    fn mib(&self, layer: usize, suffixes: &[&str]) -> String {
        let is_one = |name: &str| {
            MatrixId::parse(name).is_some_and(|(t, s)| t.layer == layer && suffixes.contains(&s))
        };
        let tensors = self.keep.tensors.iter().filter(|t| is_one(&t.name));
        let n_bytes: usize = tensors.map(|t| t.data.len()).sum();
        format!("{:.2} MiB", n_bytes as f64 / f64::from(1 << 20))
    }
}

fn run(program: &str, model: &Path, flags: &str) -> Run {
    let flags = flags.split_whitespace();
    Run::of(program, ["-m", model.to_str().unwrap()].into_iter().chain(flags))
}

#[test]
fn a_file_without_dense_weights_is_refused_without_the_flag() {
    let files = Files::new();
    for program in
        ["llama-completion", "llama-cli", "llama-perplexity", "llama-bench", "llama-server"]
    {
        let flags = if program == "llama-server" { "--port 0" } else { "" };
        let run = files.run(program, "drop.gguf", flags);
        assert_refused(&run, &["blk.0.ffn_gate.weight", "--statecells"]);
    }
}

#[test]
fn kept_dense_weights_run_without_the_flag_as_the_base_does() {
    let files = Files::new();
    let base = files.generated("base.gguf", "");
    assert!(base.len() > 5, "no text was generated");
    assert_eq!(files.generated("keep.gguf", ""), base);
    assert_ne!(files.generated("keep.gguf", "--statecells"), base, "the flag does nothing");
}

#[test]
fn coded_weights_win_over_kept_ones() {
    let files = Files::new();
    let coded = files.generated("drop.gguf", "--statecells");
    assert_eq!(files.generated("keep.gguf", "--statecells"), coded);
    assert_eq!(files.generated("dense.gguf", ""), coded);
}

#[test]
fn tensors_above_the_gap_run_dense() {
    let files = Files::new();
    let flags = format!("{GENERATE} --statecells --statecells-gap {LIMIT}");
    let run = files.run("llama-completion", "keep.gguf", &flags).ok();
    let coded = files.mib(1, &["dict", "codes", "row_scale"]);
    let dense = files.mib(0, &["weight"]);
    let _ = run.line(&["3 FFN tensors run from codes", &coded, "3 dense", &dense]);
    let expected = files.generated("second.gguf", "--statecells");
    assert_eq!(run.stdout, expected);
    assert_ne!(
        files.generated("drop.gguf", "--statecells"),
        expected,
        "layer 0 makes no difference"
    );
}

#[test]
fn limits_at_and_beyond_the_recorded_gaps() {
    let files = Files::new();
    for (limit, n_coded) in [("0.9001", 6), ("0.4", 0), ("0", 0), ("0.5001", 3)] {
        let flags = format!("{GENERATE} --statecells --statecells-gap {limit}");
        let run = files.run("llama-completion", "keep.gguf", &flags).ok();
        let coded = format!("{n_coded} FFN tensors run from codes");
        let _ = run.line(&[&coded, &format!("{} dense", 6 - n_coded)]);
    }
}

#[test]
fn a_gap_alone_does_not_switch_on() {
    let files = Files::new();
    let base = files.generated("base.gguf", "");
    assert_eq!(files.generated("keep.gguf", "--statecells-gap 1"), base);
}

#[test]
fn tensors_above_the_gap_are_refused_where_no_dense_weight_is() {
    let files = Files::new();
    let flags = format!("--statecells --statecells-gap {LIMIT}");
    for program in ["llama-completion", "llama-bench"] {
        let run = files.run(program, "drop.gguf", &flags);
        assert_refused(&run, &["blk.0.ffn_gate.weight", "--statecells-gap", "0.9000"]);
    }
}

#[test]
fn limits_that_are_no_numbers_are_refused() {
    let files = Files::new();
    for program in ["llama-completion", "llama-bench"] {
        for limit in ["abc", "-1", "nan", ""] {
            let arguments = ["-m", files.path("keep.gguf").to_str().unwrap()].map(str::to_owned);
            let flags = ["--statecells", "--statecells-gap", limit].map(str::to_owned);
            let run = Run::of(program, arguments.into_iter().chain(flags));
            assert!(run.code.is_some(), "{program} {limit:?}: ended by a signal:\n{}", run.stderr);
            assert_ne!(run.code, Some(0), "{program} {limit:?}");
        }
    }
}

#[test]
fn every_program_sums_up_what_runs_which_way() {
    let files = Files::new();
    let text = files.path("text.txt");
    std::fs::write(&text, "some text, longer than the context ".repeat(16)).unwrap();
    let perplexity = format!("-f {} -c 64 -b 64 -t 2", text.display());
    for (program, flags) in [
        ("llama-completion", GENERATE),
        ("llama-cli", "-p hello -n 8 --temp 0 --single-turn --simple-io -c 128 -t 2"),
        ("llama-perplexity", perplexity.as_str()),
        ("llama-bench", "-p 8 -n 8 -r 1 -t 2"),
    ] {
        let run = files.run(program, "drop.gguf", &format!("{flags} --statecells")).ok();
        if program != "llama-cli" && program != "llama-bench" {
            // these two show errors alone
            let _ = run.line(&["6 FFN tensors run from codes", "0 dense"]);
        }
        assert!(!run.stdout.is_empty(), "{program} says nothing");
    }
}

#[test]
fn the_server_takes_the_flags() {
    let files = Files::new();
    let flags = format!("--statecells --statecells-gap {LIMIT} -np 1 -c 128 -t 2");
    let body = json!({"prompt": "hello", "n_predict": 24, "temperature": 0, "ignore_eos": true,
        "return_tokens": true});
    let tokens = |file: &str, flags: &str| -> Value {
        let mut answer = Server::start(&files.path(file), flags).post("/completion", &body);
        answer["tokens"].take()
    };
    let mixed = tokens("keep.gguf", &flags);
    assert_eq!(mixed.as_array().unwrap().len(), 24);
    assert_eq!(mixed, tokens("second.gguf", "--statecells -np 1 -c 128 -t 2"));
    assert_ne!(mixed, tokens("keep.gguf", "-np 1 -c 128 -t 2"));
}
