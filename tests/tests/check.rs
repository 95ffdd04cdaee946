//! `--statecells-check`: the first value that is not finite is named, the dense weight takes over where there is
//! one, else the request is stopped and the server lives on.

use std::path::Path;

use dictionary::DictType;
use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::{ModelFile, Tensor};
use end_to_end::programs::{Run, assert_refused};
use end_to_end::server::Server;
use fixtures::models::Model;
use format::{MatrixId, Role, Scheme};
use half::f16;
use serde_json::json;
use tempfile::TempDir;

const GENERATE: &str = "-no-cnv -p hello -n 8 --temp 0 --ignore-eos -c 64 -t 2 --no-warmup";
const UP: MatrixId = MatrixId { layer: 0, role: Role::Up };

/// A base model and its coded twin beside the dense weights.
fn files(folder: &Path) -> (ModelFile, ModelFile) {
    let path = folder.join("base.gguf");
    Model::default().write(&path).unwrap();
    let base = ModelFile::read(&path);
    let coding = Coding { keep_dense: true, ..Coding::global(Scheme::SignRowScale, DictType::F32) };
    let coded = Twins::of(&base, &coding).coded;
    (base, coded)
}

fn run(file: &ModelFile, flags: &str) -> Run {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    file.write(&path);
    let flags = GENERATE.split(' ').chain(flags.split_whitespace());
    Run::of("llama-completion", flags.chain(["-m", path.to_str().unwrap()]))
}

/// Atoms and scales that are finite, each for itself, and whose product with any input is not.
fn overflow(file: &mut ModelFile, tensor: MatrixId) {
    let dict = file.tensor_mut(&tensor.with_suffix("dict"));
    let huge: Vec<f32> = dict.to_f32().iter().map(|v| v.signum() * 1e38).collect();
    *dict = Tensor::from_f32(&tensor.with_suffix("dict"), &dict.dims.clone(), &huge);
    let scales = file.tensor_mut(&tensor.with_suffix("row_scale"));
    scales.data = f16::MAX.to_le_bytes().repeat(scales.data.len() / 2);
}

fn without_dense(mut file: ModelFile, tensor: MatrixId) -> ModelFile {
    file.replace(&tensor.weight(), []);
    file
}

#[test]
fn a_sound_model_runs_as_without_the_check() {
    let folder = TempDir::new().unwrap();
    let (_, coded) = files(folder.path());
    let plain = run(&coded, "--statecells").ok();
    let checked = run(&coded, "--statecells --statecells-check").ok();
    assert_eq!(plain.stdout, checked.stdout);
    assert!(!checked.stderr.contains("dense weight from now on"), "{}", checked.stderr);
}

#[test]
fn a_coded_weight_that_overflows_is_named_and_replaced_by_the_dense_one() {
    let folder = TempDir::new().unwrap();
    let (base, mut coded) = files(folder.path());
    overflow(&mut coded, UP);
    let checked = run(&coded, "--statecells --statecells-check").ok();
    let line = checked.line(&["layer 0", "'blk.0.ffn_up.weight'", "output", "token", "position"]);
    assert!(line.contains("runs from its dense weight from now on"), "{line}");
    assert_eq!(checked.stderr.matches("from now on").count(), 1, "once, not at every token");
    // As if this one weight had never been coded.
    let mut mixed = files(folder.path()).1;
    mixed.remove_key(&format::keys::tensor_scheme(UP));
    for suffix in ["dict", "codes", "row_scale"] {
        mixed.replace(&UP.with_suffix(suffix), []);
    }
    let expected = run(&mixed, "--statecells").ok();
    assert_eq!(checked.stdout, expected.stdout);
    // Both files are still models of their own.
    assert_ne!(run(&base, "").ok().stdout, Vec::<u8>::new());
}

#[test]
fn without_a_dense_weight_the_run_ends_with_the_name() {
    let folder = TempDir::new().unwrap();
    let (_, mut coded) = files(folder.path());
    overflow(&mut coded, UP);
    let file = without_dense(coded, UP);
    let run = run(&file, "--statecells --statecells-check");
    assert_refused(&run, &["layer 0", "'blk.0.ffn_up.weight'", "no dense weight", "stopped"]);
}

#[test]
fn a_benchmark_can_be_checked_too() {
    let folder = TempDir::new().unwrap();
    let (_, mut coded) = files(folder.path());
    overflow(&mut coded, UP);
    let path = folder.path().join("model.gguf");
    without_dense(coded, UP).write(&path);
    let bench = |flags: &str| {
        let always = "-p 4 -n 0 -r 1 -t 1 --statecells -m".split(' ');
        let flags = flags.split_whitespace();
        Run::of("llama-bench", always.chain([path.to_str().unwrap()]).chain(flags))
    };
    let _ = bench("").ok();
    let parts = ["layer 0", "'blk.0.ffn_up.weight'", "output", "no dense weight"];
    assert_refused(&bench("--statecells-check"), &parts);
}

/// Token of the letter `z`: after three special ones every byte has one.
const LETTER: usize = 3 + b'z' as usize;

#[test]
fn a_server_stops_the_request_and_lives_on() {
    let folder = TempDir::new().unwrap();
    let (_, mut coded) = files(folder.path());
    // One letter whose embedding is not a number: its FFN inputs are not either.
    let name = "token_embd.weight";
    let embedding = coded.tensor(name);
    let (dims, mut values) = (embedding.dims.clone(), embedding.to_f32());
    values[LETTER * dims[0]] = f32::NAN;
    *coded.tensor_mut(name) = Tensor::from_f32(name, &dims, &values);
    let path = folder.path().join("bad.gguf");
    coded.write(&path);
    let server = Server::start(&path, "--statecells --statecells-check -c 64 -t 1 -np 1");
    let ask = |prompt: &str| json!({ "prompt": prompt, "n_predict": 4, "temperature": 0 });
    let before = server.post("/completion", &ask("abc"));
    for _ in 0..3 {
        let (status, body) = server.try_post("/completion", &ask("abz"));
        assert_eq!(status, 500, "{body}");
        let log = server.wait_for(&["layer 0", "input", "NaN", "the request is stopped"]);
        assert!(log.contains("blk.0.ffn_"), "{log}");
    }
    let after = server.post("/completion", &ask("abc"));
    assert_eq!(before["content"], after["content"]);
}
