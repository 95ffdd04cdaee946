//! Models with layers for multi-token prediction, which text does not run through, from the text to the coded model.

use std::path::PathBuf;

use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused};
use fixtures::models::Model;
use serde_json::Value;
use tempfile::TempDir;

/// The layer for multi-token prediction.
const MTP: &str = "blk.2.ffn_";
const CALIB: &str = "-m model.gguf -o calib.gguf -f text.txt --tokens 1024 --ctx 64 -t 1";
const BUILD: &str = "-i model.gguf --beam 2 --rounds 1 -t 1";

struct Fixture {
    folder: TempDir,
    /// FFN matrices per layer.
    n_targets: usize,
}

impl Fixture {
    /// `model.gguf` with two layers and one more, and a text.
    fn new(has_gate: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let model = Model { n_mtp_layers: 1, has_gate, ..Model::default() };
        model.write(&folder.path().join("model.gguf")).unwrap();
        let words = (0..2000).map(|i| ["one", "two", "or so", "many"][i * i % 7 % 4]);
        let text = words.collect::<Vec<_>>().join(" ");
        std::fs::write(folder.path().join("text.txt"), text).unwrap();
        Self { folder, n_targets: if has_gate { 3 } else { 2 } }
    }

    /// exaone4 and glm4.
    fn each() -> [Self; 2] {
        [true, false].map(Self::new)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `program` with `flags`, of which those with a letter behind a dot are names in the folder.
    fn run(&self, program: &str, flags: &str) -> Run {
        let is_name = |word: &str| {
            word.split_once('.').is_some_and(|(_, end)| end.starts_with(char::is_alphabetic))
        };
        let flag = |word: &str| match is_name(word) {
            true => self.path(word).display().to_string(),
            false => word.to_owned(),
        };
        Run::of(program, flags.split_whitespace().map(flag))
    }

    fn calibrate(&self) {
        let run = self.run("statecells-calib", CALIB).ok();
        let _ = run.line(&["note: ", "(2, by ", "nextn_predict_layers = 1)", "left out"]);
    }

    /// Builds `name`; the tensors of the MTP layer in it.
    fn build(&self, name: &str, flags: &str) -> Vec<(String, Vec<u8>)> {
        let flags = format!("{BUILD} -o {name} {flags}");
        let dry = self.run("statecells-build", &format!("{flags} --dry-run")).ok().text();
        let run = self.run("statecells-build", &flags).ok();
        let is_note = |line: &&str| line.starts_with("note: layers for multi-token");
        let notes = run.stderr.lines().filter(is_note).collect::<Vec<_>>();
        assert_eq!(dry.lines().filter(is_note).collect::<Vec<_>>(), notes, "{flags}");
        let listed = |text: &str| text.lines().filter(|l| l.contains("blk.")).count();
        assert_eq!(listed(&dry), listed(&run.text()), "{flags}:\n{dry}\n{}", run.text());
        self.mtp(name)
    }

    fn mtp(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let tensors = ModelFile::read(&self.path(name)).tensors.into_iter();
        let is_ffn = |name: &str| name.starts_with(MTP) && !name.contains("norm");
        tensors.filter(|t| is_ffn(&t.name)).map(|t| (t.name, t.data)).collect()
    }

    /// Runs `name`, of which `n_coded` coded matrices are in layers that are run.
    fn complete(&self, name: &str, n_coded: usize) {
        let flags = "--statecells -p abc -no-cnv -n 8 --temp 0 -c 64 -t 1 --no-warmup";
        let run = self.run("llama-completion", &format!("-m {name} {flags}")).ok();
        let _ = run.line(&[&format!("statecells: {n_coded} FFN tensors run from codes")]);
    }
}

#[test]
fn they_stay_dense_and_nobody_asks_for_their_inputs() {
    for fixture in Fixture::each() {
        fixture.calibrate();
        let n_coded = 2 * fixture.n_targets;
        let dense = fixture.mtp("model.gguf");
        assert_eq!(dense.len(), fixture.n_targets);
        let imatrix = "-m model.gguf -f text.txt -o imatrix.gguf -c 64 --chunks 4 -t 1";
        let _ = fixture.run("llama-imatrix", imatrix).ok();
        for (name, flags) in [
            ("plain.gguf", "--S 4 --no-calib"),
            ("calib.sc.gguf", "--S 4 --calib calib.gguf"),
            ("imatrix.sc.gguf", "--S 4 --imatrix imatrix.gguf"),
            ("bpw.gguf", "--bpw 4 --calib calib.gguf"),
            ("saving.gguf", "--target-saving 0.3 --calib calib.gguf"),
        ] {
            assert_eq!(fixture.build(name, flags), dense, "{name}");
            fixture.complete(name, n_coded);
        }
        let note = fixture
            .run("statecells-build", &format!("{BUILD} --S 4 --no-calib --dry-run"))
            .ok()
            .text();
        assert!(note.contains("(2, by ") && note.contains("stay dense"), "{note}");
        let delta = "-i model.gguf -o delta.gguf --targets up --base none --delta-k 4 -t 1";
        let _ = fixture.run("seeddelta-build", delta).ok();
        assert_eq!(fixture.mtp("delta.gguf"), dense);
    }
}

#[test]
fn where_they_are_named_their_weights_alone_decide() {
    for fixture in Fixture::each() {
        fixture.calibrate();
        let plain = fixture.build("plain.gguf", "--S 4 --no-calib --layers 2");
        let dense = fixture.mtp("model.gguf");
        assert!(plain.len() > dense.len());
        let calibrated = fixture.build("calibrated.gguf", "--S 4 --layers 0-2 --calib calib.gguf");
        assert_eq!(calibrated, plain);
        // llama.cpp skips these layers, so their codes are not loaded.
        fixture.complete("plain.gguf", 0);
        fixture.complete("calibrated.gguf", 2 * fixture.n_targets);
        // The same bytes as grown.
        let _ = fixture.build("grown.gguf", "--S 4 --calib calib.gguf");
        let grow = format!("{BUILD} -o grown.gguf --S 4 --calib calib.gguf --layers 2 --resume");
        let run = fixture.run("statecells-build", &grow).ok();
        let _ = run.line(&["note: ", "from their weights alone"]);
        let bytes = |name: &str| std::fs::read(fixture.path(name)).unwrap();
        assert!(bytes("grown.gguf") == bytes("calibrated.gguf"));
        let shared = fixture.build("shared.gguf", "--bpw 4 --layers 0-2 --calib calib.gguf");
        assert_ne!(shared, dense);
        fixture.complete("shared.gguf", 2 * fixture.n_targets);
    }
}

#[test]
fn a_calibration_of_them_is_refused_at_once() {
    for fixture in Fixture::each() {
        for layers in ["2", "0-2"] {
            let run = fixture.run("statecells-calib", &format!("{CALIB} --layers {layers}"));
            assert_refused(&run, &["--layers", "(2, by ", "no text runs through"]);
            assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
            assert!(!fixture.path("calib.gguf").exists());
        }
        let _ = fixture.run("statecells-calib", &format!("{CALIB} --layers 1")).ok();
    }
}

#[test]
fn they_are_counted_where_they_are_and_evaluated_with_the_rest() {
    let fixture = Fixture::new(true);
    let _ = fixture.build("coded.gguf", "--S 4 --no-calib");
    let text = fixture.run("statecells-inspect", "coded.gguf").ok().text();
    assert!(text.contains("3 layers (1 of them for multi-token prediction)"), "{text}");
    let seen = fixture.run("statecells-inspect", "coded.gguf --json").ok().text();
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((&seen["n_layers"], &seen["n_mtp_layers"]), (&3.into(), &1.into()));
    assert_eq!((&seen["totals"]["n_coded"], &seen["totals"]["n_dense"]), (&6.into(), &3.into()));
    // Keys and values of the two layers that are run, in F16.
    let kv = &seen["memory"]["kv_cache"];
    assert_eq!(kv["bytes"].as_u64().unwrap(), 2 * 2 * 2 * 64 * kv["n_ctx"].as_u64().unwrap());
    let run = fixture.run(
        "statecells-eval",
        "--base model.gguf --sc coded.gguf --text text.txt --outdir out.d --ctx 64 --chunks 12 -t 1 --against Q5_K_M --skip speed,qa",
    );
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
}
