//! Mixtures of experts: random models of two layers, built, and run both from their codes and from the dense weights that
//! these stand for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use end_to_end::logits::{Pace, distance, load_coded, load_dense, logits};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, python};
use fixtures::architectures::{self, MIXTURES};
use fixtures::models::write_imatrix_of_experts;
use format::{Branch, ModelMap};
use ggml::gguf::GgufFile;
use llama::{ModelParams, Override};
use serde_json::Value;
use tempfile::TempDir;

/// Largest distance of the logits of a coded file and those of what it stands for.
const ROUNDING: f32 = 0.05;

fn tokens(n: i32) -> Vec<i32> {
    (0..n).map(|i| 3 + (i * 37) % 256).collect()
}

/// A model of an architecture with what is made of it.
struct Mixture {
    folder: TempDir,
}

impl Mixture {
    fn new(architecture: &str) -> Self {
        let mixture = Self { folder: TempDir::new().unwrap() };
        architectures::write_experts(architecture, &mixture.path("model.gguf")).unwrap();
        mixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, flags: &str) -> Run {
        let flag = |flag: &str| match flag.strip_prefix('@') {
            Some(name) => self.path(name).to_string_lossy().into_owned(),
            None => flag.to_owned(),
        };
        Run::of(program, flags.split_whitespace().map(flag))
    }

    fn build(&self, flags: &str) {
        self.build_from("model.gguf", flags);
    }

    fn build_from(&self, input: &str, flags: &str) {
        let build =
            format!("-i @{input} -o @coded.gguf --S 6 --rounds 1 --beam 2 -t 2 --force {flags}");
        let _ = self.run("statecells-build", &build).ok();
    }

    fn decode(&self) {
        let _ = self
            .run(
                "statecells-build",
                "-i @coded.gguf --decode @dense.gguf --decode-type f32 --force",
            )
            .ok();
    }
}

/// The middle one of the distances of all tokens: next to a tie, rounding decides which expert a router takes.
fn median(expected: &[Vec<f32>], found: &[Vec<f32>]) -> f32 {
    let of = |t: usize| distance(&expected[t..t + 1], &found[t..t + 1]);
    let mut all: Vec<f32> = (0..expected.len()).map(of).collect();
    all.sort_by(f32::total_cmp);
    all[all.len() / 2]
}

/// The codes of all tensors of a file.
fn codes(path: &Path) -> Vec<Vec<u8>> {
    let file = GgufFile::open(path).unwrap();
    let codes = file.tensors().iter().filter(|t| t.name().ends_with(".codes"));
    codes.map(|t| file.data(t).to_vec()).collect()
}

/// Number of coded tensors of experts in a file.
fn n_experts(path: &Path) -> usize {
    let file = GgufFile::open(path).unwrap();
    file.schemes().keys().filter(|id| id.role.branch() == Branch::Experts).count()
}

/// Codes a mixture and runs it beside what its codes stand for.
fn check(architecture: &str, mixture: &Mixture) {
    mixture.build("--no-calib");
    mixture.decode();
    let (model, coded, dense) =
        (mixture.path("model.gguf"), mixture.path("coded.gguf"), mixture.path("dense.gguf"));
    assert!(n_experts(&coded) >= 2, "{architecture}: no experts are coded");
    let map = |path: &Path| {
        let file = GgufFile::open(path).unwrap();
        ModelMap::of(file.tensors().iter().map(|t| (t.name(), t.dims())))
    };
    assert_eq!(map(&dense), map(&model), "{architecture}: shapes");
    let (source, twin) = (load_dense(&model).unwrap(), load_dense(&dense).unwrap());
    let coded = load_coded(&coded).unwrap();
    let tokens = tokens(24);
    for (pace, n_threads) in [(Pace::Single, 1), (Pace::Batch, 2)] {
        let of = |model: &llama::Model| logits(model, &tokens, pace, n_threads);
        let (source, twin, coded) = (of(&source), of(&twin), of(&coded));
        let (rounding, coding) = (median(&twin, &coded), median(&source, &coded));
        println!(
            "{architecture} {pace:?}: {rounding:.4} from its twin, {coding:.4} from the source"
        );
        assert!(rounding < ROUNDING && rounding > 0.0, "{architecture} {pace:?}: {rounding}");
        assert!(coding > rounding, "{architecture} {pace:?}: {coding} {rounding}");
    }
}

#[test]
fn coded_experts_run_as_what_they_stand_for() {
    for architecture in MIXTURES {
        check(architecture, &Mixture::new(architecture));
    }
}

/// gpt-oss has its experts in MXFP4, in files as they are published.
#[test]
fn experts_in_mxfp4_are_a_source() {
    let mixture = Mixture::new("gpt-oss");
    let _ = mixture.run("llama-quantize", "@model.gguf @quantized.gguf MXFP4_MOE").ok();
    fs::rename(mixture.path("quantized.gguf"), mixture.path("model.gguf")).unwrap();
    let file = GgufFile::open(&mixture.path("model.gguf")).unwrap();
    assert_eq!(file.tensor("blk.1.ffn_up_exps.weight").unwrap().ty().to_string(), "mxfp4");
    check("gpt-oss in MXFP4", &mixture);
}

/// The experts of a layer may lie in different parts of a model; their codes are those of the whole.
#[test]
fn a_mixture_in_parts_is_coded_as_in_one_file() {
    let mixture = Mixture::new("qwen3moe");
    mixture.build("--tokens 512");
    let whole = codes(&mixture.path("coded.gguf"));
    let _ = mixture.run("llama-gguf-split", "--split --split-max-tensors 5 @model.gguf @part").ok();
    let parts = fs::read_dir(mixture.folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let first = parts.map(|n| n.into_string().unwrap()).find(|n| n.starts_with("part-00001-of-"));
    mixture.build_from(&first.unwrap(), "--tokens 512");
    assert_eq!(codes(&mixture.path("coded.gguf")), whole);
    assert_eq!(whole.len(), 6);
}

/// Experts, shared experts and plain FFNs as docs/format.md has them; and a wrong code is seen.
#[test]
fn the_page_on_the_format_decodes_experts() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/format_page.py");
    for (architecture, outliers) in [("deepseek", "0.01"), ("qwen3next", "0")] {
        let mixture = Mixture::new(architecture);
        mixture.build(&format!("--no-calib --outliers {outliers}"));
        mixture.decode();
        let agrees = || {
            let files = ["coded.gguf", "dense.gguf"].map(|name| mixture.path(name));
            let output = Command::new(&python).arg(&script).args(files).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.is_empty(), "{text}");
            output.status.success()
        };
        assert!(agrees(), "{architecture}");
        let mut file = ModelFile::read(&mixture.path("coded.gguf"));
        let codes = file.tensor_mut("blk.1.ffn_down_exps.codes");
        let last = codes.data.len() - 1;
        codes.data[last] = !codes.data[last];
        file.write(&mixture.path("coded.gguf"));
        assert!(!agrees(), "{architecture}: blind");
    }
}

/// Gates and ups have one dictionary, so that what is prepared for one does for the other.
#[test]
fn the_command_without_flags_fits_experts_to_the_models_own_text() {
    let mixture = Mixture::new("qwen3moe");
    let flags = "-i @model.gguf -o @coded.gguf --S 6 --tokens 512 -t 2";
    let run = mixture.run("statecells-build", flags).ok();
    let _ = run.line(&["without --sequential: experts (blk.0.ffn_gate_exps)"]);
    let file = GgufFile::open(&mixture.path("coded.gguf")).unwrap();
    let dict = |part: &str| file.data(file.tensor(&format!("blk.1.{part}.dict")).unwrap());
    assert_eq!(dict("ffn_gate_exps"), dict("ffn_up_exps"));
    assert_ne!(dict("ffn_gate_exps"), dict("ffn_down_exps"));
    let first = codes(&mixture.path("coded.gguf"));
    let again = "-i @model.gguf -o @coded.gguf --S 6 --calib @coded.calib.gguf -t 1 --force";
    let _ = mixture.run("statecells-build", again).ok();
    assert_eq!(n_experts(&mixture.path("coded.gguf")), 6);
    assert_eq!(codes(&mixture.path("coded.gguf")), first, "threads decide nothing");
}

/// How many inputs each expert of the first gate saw, by a build's report.
fn seen(report: &Path) -> Vec<u64> {
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let gate = tensors.iter().find(|t| t["name"] == "blk.0.ffn_gate_exps.weight").unwrap();
    gate["expert_inputs"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
}

/// Where the moments of single experts are too large, their diagonals say what each has seen.
#[test]
fn squares_take_the_place_of_moments_that_are_too_large() {
    let mixture = Mixture::new("qwen3moe");
    let calibrated = |name: &str, flags: &str| {
        let flags = format!("-m @model.gguf -o @{name}.gguf --tokens 512 --ctx 64 {flags}");
        let _ = mixture.run("statecells-calib", &flags).ok();
        mixture.build(&format!("--calib @{name}.gguf --report-json @{name}.json"));
        let file = GgufFile::open(&mixture.path(&format!("{name}.gguf"))).unwrap();
        let has = |what: &str| file.tensor(&format!("blk.0.ffn_exps_in.{what}")).is_some();
        let kept = (has("expert_h"), has("expert_squares"));
        (kept, codes(&mixture.path("coded.gguf")), seen(&mixture.path(&format!("{name}.json"))))
    };
    let (whole, squares) = (calibrated("whole", ""), calibrated("squares", "--max-expert-mib 0"));
    assert_eq!((whole.0, squares.0), ((true, false), (false, true)));
    assert_ne!(whole.1, squares.1);
    assert_eq!(whole.2, squares.2);
    assert!(squares.2.iter().sum::<u64>() > 0);
}

/// An imatrix tells of every expert what that has seen.
#[test]
fn experts_are_fitted_to_the_squares_of_an_imatrix() {
    let mixture = Mixture::new("qwen3moe");
    let model = GgufFile::open(&mixture.path("model.gguf")).unwrap();
    let experts = model.tensors().iter().filter(|t| t.name().contains("_exps.weight"));
    let experts: Vec<_> = experts.map(|t| (t.name(), t.dims()[0], t.dims()[2])).collect();
    let n_experts = experts[0].2;
    let write = |turn: usize| {
        // Each expert has its squares in another order, so that all together have seen every input alike.
        let square = |e: usize, i: usize| (1 + (i + e * turn) % n_experts) as f32;
        let entry = |(name, d_in, _): &(&str, usize, usize)| {
            let squares = (0..n_experts * d_in).map(|at| square(at / d_in, at % d_in));
            ((*name).to_owned(), squares.collect())
        };
        let entries: Vec<(String, Vec<f32>)> = experts.iter().map(entry).collect();
        let path = mixture.path("imatrix.gguf");
        write_imatrix_of_experts(&path, &entries, n_experts, 40.0).unwrap();
        mixture.build("--imatrix @imatrix.gguf --report-json @report.json");
        codes(&mixture.path("coded.gguf"))
    };
    assert_ne!(write(1), write(n_experts - 1));
    assert_eq!(seen(&mixture.path("report.json")), vec![40; n_experts]);
}

/// Beside their dense weights codes run by the flag alone, and as ever when somebody looks at what they give.
#[test]
fn experts_keep_their_dense_weights_and_can_be_watched() {
    let mixture = Mixture::new("qwen3moe");
    mixture.build("--no-calib --dense keep");
    let (model, coded) = (mixture.path("model.gguf"), mixture.path("coded.gguf"));
    let tokens = tokens(12);
    let of = |model: &llama::Model| logits(model, &tokens, Pace::Batch, 2);
    let source = of(&load_dense(&model).unwrap());
    assert_eq!(of(&load_dense(&coded).unwrap()), source);
    let plain = of(&load_coded(&coded).unwrap());
    assert_ne!(plain, source);
    let flags = ["statecells.enable", "statecells.check"];
    let overrides = flags.map(|flag| (flag.to_owned(), Override::Bool(true))).to_vec();
    let params = ModelParams { overrides, ..ModelParams::default() };
    let watched = llama::Model::load(llama::Backend::init(), &coded, &params).unwrap();
    assert_eq!(of(&watched), plain);
    let gap =
        [("statecells.enable", Override::Bool(true)), ("statecells.gap", Override::Float(0.0))];
    let overrides = gap.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let params = ModelParams { overrides, ..ModelParams::default() };
    let none = llama::Model::load(llama::Backend::init(), &coded, &params).unwrap();
    assert_eq!(of(&none), source, "no gap is small enough");
}

#[test]
fn what_experts_cannot_have_is_refused_by_name() {
    let mixture = Mixture::new("deepseek");
    let refused = |flags: &str, expected: &[&str]| {
        let build = format!("-i @model.gguf -o @coded.gguf --dry-run {flags}");
        let run = mixture.run("statecells-build", &build);
        assert_eq!(run.code, Some(1), "{flags}: {run:?}");
        for expected in expected {
            assert!(run.stderr.contains(expected), "{flags}: {}", run.stderr);
        }
    };
    let name = "blk.1.ffn_gate_exps";
    refused("--tokens 512 --sequential 1", &["--sequential", name, "give --sequential 0"]);
    refused("--scheme sign+row_scale --no-calib", &[name, "--scheme sections"]);
    refused("--tokens 512 --tune 2 --sequential 0", &["--tune", "leave out --tune"]);
    let plain = "-i @model.gguf -o @coded.gguf --no-calib --targets gate,up,down";
    let _ = mixture.run("statecells-build", plain).ok();
}
