//! `statecells-build` on SmolLM2, killed at any moment, and its files in llama.cpp.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use dictionary::{DictType, GlobalCodec, GlobalParams};
use end_to_end::logits::{Pace, distance, load_coded, load_dense, logits};
use end_to_end::model_file::{ModelFile, Tensor};
use end_to_end::programs::{Run, program, smollm2};
use fixtures::models::Model;
use format::{MatrixId, MatrixShape, Scheme, Sidecar, SidecarSpec};
use llama::Token;
use numerics::Codec;
use tempfile::TempDir;

/// Small dictionaries that are learned in a moment; twelve matrices.
const QUICK: &str = "--layers 0-3 --row-scale --dict-M 64 --dict-k 8 --dict-iters 1 --dict-refine 1 --dict-max-samples 512";

/// Times that a build is killed.
const KILLS: usize = 6;

fn arguments<'a>(input: &'a Path, output: &'a Path, flags: &'a str) -> Vec<&'a str> {
    let files = ["-i", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    files.into_iter().chain(flags.split_whitespace()).collect()
}

fn build(input: &Path, output: &Path, flags: &str) -> Vec<u8> {
    let _ = Run::of("statecells-build", arguments(input, output, flags)).ok();
    fs::read(output).unwrap()
}

/// Names in `folder` that start as the output's does.
fn files(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Pseudo-random numbers from 0 to 1, the same in every run.
fn moments() -> impl Iterator<Item = f64> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
}

#[test]
fn killed_at_any_moment_a_build_of_smollm2_ends_with_the_same_bytes() {
    let Some(input) = smollm2() else { return };
    let folder = TempDir::new().unwrap();
    let whole = folder.path().join("whole.gguf");
    let start = Instant::now();
    let expected = build(&input, &whole, QUICK);
    let duration = start.elapsed();
    fs::remove_file(&whole).unwrap();

    let output = folder.path().join("killed.gguf");
    let flags = format!("{QUICK} --resume");
    let mut n_killed = 0;
    for moment in moments().take(KILLS) {
        let mut child = Command::new(program("statecells-build"))
            .args(arguments(&input, &output, &flags))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // a resumed run has less to do: kill it earlier
        std::thread::sleep(duration.mul_f64(0.05 + 0.5 * moment / (1.0 + f64::from(n_killed))));
        n_killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        if output.exists() {
            assert!(
                fs::read(&output).unwrap() == expected,
                "an incomplete file under the final name"
            );
        }
    }
    assert!(n_killed >= 3, "only {n_killed} runs were still at work");
    assert!(build(&input, &output, &flags) == expected, "other bytes than the uninterrupted run");
    assert_eq!(files(folder.path()), ["killed.gguf"], "left-overs");
}

#[test]
fn threads_do_not_change_a_byte_on_smollm2() {
    let Some(input) = smollm2() else { return };
    let folder = TempDir::new().unwrap();
    let flags = QUICK.replace("0-3", "0,29");
    let output = |n: usize| folder.path().join(format!("{n}.gguf"));
    let expected = build(&input, &output(1), &format!("{flags} -t 1"));
    for n in [2, 5] {
        let found = build(&input, &output(n), &format!("{flags} -t {n}"));
        assert!(found == expected, "{n} threads");
    }
}

/// Replaces every coded matrix of `file` by the dense one that the codec decodes.
fn decoded(file: &ModelFile, base: &ModelFile) -> ModelFile {
    let mut dense = base.clone();
    for tensor in &base.tensors {
        let Some((ffn, "weight")) = MatrixId::parse(&tensor.name) else { continue };
        let sidecars = sidecars(file, ffn, tensor.shape());
        if !sidecars.is_empty() {
            let codec = GlobalCodec::new(GlobalParams::default());
            let values = codec.decode(&sidecars, tensor.shape()).unwrap();
            dense.replace(&tensor.name, [Tensor::from_f32(&tensor.name, &tensor.dims, &values)]);
        }
    }
    dense
}

/// The sidecars of `ffn` in `file`; none if it is dense.
fn sidecars(file: &ModelFile, ffn: MatrixId, shape: MatrixShape) -> Vec<Sidecar> {
    let [mut m, mut k] = [0, 0];
    for tensor in &file.tensors {
        match MatrixId::parse(&tensor.name) {
            Some((t, "dict")) if t == ffn => m = tensor.dims[1],
            Some((t, "codes")) if t == ffn => k = tensor.dims[0],
            _ => {}
        }
    }
    let has = |suffix: &str| file.tensors.iter().any(|t| t.name == ffn.with_suffix(suffix));
    let scheme = match (has("codes"), has("vals"), has("row_scale")) {
        (false, ..) => return Vec::new(),
        (_, true, _) => Scheme::SignVals,
        (_, _, true) => Scheme::SignRowScale,
        _ => Scheme::Sign,
    };
    let params =
        GlobalParams { scheme, m: Some(m), k, dict_type: DictType::F16, ..Default::default() };
    let specs = GlobalCodec::new(params).sidecars(shape).unwrap();
    let stored = |spec: SidecarSpec| {
        let data = file.tensor(&ffn.with_suffix(spec.suffix)).data.clone();
        Sidecar { spec, data }
    };
    specs.into_iter().map(stored).collect()
}

fn build_random(folder: &Path, flags: &str) -> (PathBuf, ModelFile) {
    let input = folder.join("base.gguf");
    Model { other_type: ggml::Type::F32, ..Model::default() }.write(&input).unwrap();
    let output = folder.join("coded.gguf");
    let _ = build(&input, &output, flags);
    (output, ModelFile::read(&input))
}

/// As in the tests of the hook, but from the command line to the logits.
#[test]
fn what_is_built_runs_as_its_reconstruction() {
    let tokens: Vec<Token> = (0..24).map(|i| 3 + (i * 41) % 256).collect();
    for scheme in ["sign", "sign+row_scale", "sign+vals"] {
        let folder = TempDir::new().unwrap();
        let flags = format!("--scheme {scheme} --dict-M 50 --dict-k 13 --dict-iters 2");
        let (output, base) = build_random(folder.path(), &flags);
        let dense = folder.path().join("dense.gguf");
        decoded(&ModelFile::read(&output), &base).write(&dense);
        let (coded, dense) = (load_coded(&output).unwrap(), load_dense(&dense).unwrap());
        let logits = |model| logits(model, &tokens, Pace::Batch, 2);
        let distance = distance(&logits(&dense), &logits(&coded));
        assert!(distance <= 1e-3, "{scheme}: {distance}");
    }
}

#[test]
fn a_built_file_generates_text_in_llama_cpp() {
    let Some(input) = smollm2() else { return };
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("coded.gguf");
    let _ = build(
        &input,
        &output,
        "--layers 10-11 --scheme sections --no-calib --S 8 --beam 4 --rounds 0",
    );
    let flags = "--statecells -no-cnv -n 8 --temp 0 -c 64 -t 2 --no-warmup -m";
    let arguments =
        flags.split(' ').chain([output.to_str().unwrap(), "-p", "The capital of France is"]);
    let run = Run::of("llama-completion", arguments).ok();
    let _ = run.line(&["6 FFN tensors run from codes", "0 dense"]);
    assert!(run.text().contains("France is Paris"), "{}", run.text());
}
