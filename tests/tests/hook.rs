//! The run-time hook against dense models that hold the reconstructed weights: the same logits.

use std::path::Path;

use dictionary::DictType;
use end_to_end::coding::{Coding, Method, Twins};
use end_to_end::logits::{Pace, distance, load_coded, load_dense, logits};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, smollm2};
use fixtures::models::Model as RandomModel;
use format::{Role, Scheme};
use ggml::Type;
use llama::{Computed, Context, ContextParams, Node, Observer, Outputs, Token};
use tempfile::TempDir;

/// Largest difference of logits over the largest logit, coded against dense, for global dictionaries. What
/// differs is the order of additions. Promised is 1e-3, found 1e-5.
const TOLERANCE: f32 = 1e-4;

/// The same for sections, whose tables round what an atom contributes to 8 bits: some 2 % of an output.
const TOLERANCE_SECTIONS: f32 = 0.05;

/// The same on SmolLM2, whose largest activations make more of it: 0.04 to 0.10 for codes by six beams from 1 to 16.
const TOLERANCE_SECTIONS_SMOLLM2: f32 = 0.15;

fn tolerance(coding: &Coding) -> f32 {
    match coding.method {
        Method::Global(_) | Method::SeedDelta(_) => TOLERANCE,
        Method::Sections(_) => TOLERANCE_SECTIONS,
    }
}

/// Odd sizes: 52 and 108 rows are no multiple of 32, and the 11 codes of a row none of 8.
fn random_model(folder: &Path) -> ModelFile {
    let path = folder.join("base.gguf");
    let odd = RandomModel { n_embd: 52, n_ff: 108, n_heads: 2, ..RandomModel::default() };
    RandomModel { other_type: Type::F32, ..odd }.write(&path).unwrap();
    ModelFile::read(&path)
}

/// Bytes in no order, as tokens of the random models.
fn random_tokens() -> Vec<Token> {
    (0..24).map(|i| 3 + (i * 37) % 256).collect()
}

/// The largest distance of the twins, token by token and in a batch, with one thread and with two.
fn worst_distance(folder: &Path, twins: &Twins, tokens: &[Token]) -> f32 {
    let (coded, dense) = (folder.join("coded.gguf"), folder.join("dense.gguf"));
    twins.coded.write(&coded);
    twins.dense.write(&dense);
    let (coded, dense) = (load_coded(&coded).unwrap(), load_dense(&dense).unwrap());
    let mut worst = 0.0f32;
    for pace in [Pace::Single, Pace::Batch] {
        for n_threads in [1, 2] {
            let expected = logits(&dense, tokens, pace, n_threads);
            let found = logits(&coded, tokens, pace, n_threads);
            let distance = distance(&expected, &found);
            println!("{pace:?}, {n_threads} threads: {distance:e}");
            worst = worst.max(distance);
        }
    }
    worst
}

#[test]
fn coded_and_reconstructed_models_have_the_same_logits() {
    let folder = TempDir::new().unwrap();
    let base = random_model(folder.path());
    for coding in Coding::all() {
        let worst = worst_distance(folder.path(), &Twins::of(&base, &coding), &random_tokens());
        assert!(worst <= tolerance(&coding), "{:?}: {worst}", coding.method);
    }
}

#[test]
fn a_model_without_gate_and_one_coded_target_do_as_well() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("base.gguf");
    RandomModel { has_gate: false, other_type: Type::F32, ..RandomModel::default() }
        .write(&path)
        .unwrap();
    let base = ModelFile::read(&path);
    for targets in [vec![Role::Up, Role::Down], vec![Role::Down]] {
        let twins = Twins::of(&base, &Coding { targets: targets.clone(), ..Coding::default() });
        let worst = worst_distance(folder.path(), &twins, &random_tokens());
        assert!(worst <= TOLERANCE, "{targets:?}: {worst}");
    }
}

/// Without this the tests above could pass because the FFN hardly matters.
#[test]
fn one_wrong_row_is_seen() {
    let folder = TempDir::new().unwrap();
    let base = random_model(folder.path());
    let seeddelta = Coding::seeddelta("lowrank:5", true);
    for coding in [Coding::default(), Coding::sections(0.01), seeddelta] {
        for name in ["blk.0.ffn_gate", "blk.0.ffn_up", "blk.1.ffn_down"] {
            let mut twins = Twins::of(&base, &coding);
            let scales = twins.coded.tensor_mut(&format!("{name}.row_scale"));
            scales.data[1] ^= 0x80; // the sign of the first scale
            let worst = worst_distance(folder.path(), &twins, &random_tokens());
            assert!(worst > 2.0 * tolerance(&coding), "{:?}, {name}: {worst}", coding.method);
        }
    }
}

#[test]
fn coded_and_base_model_differ() {
    let folder = TempDir::new().unwrap();
    let base = random_model(folder.path());
    let mut twins = Twins::of(&base, &Coding::default());
    twins.dense = base;
    let worst = worst_distance(folder.path(), &twins, &random_tokens());
    assert!(worst > 0.1, "{worst}");
}

/// Operations of the hook in one graph.
#[derive(Default)]
struct Custom(usize);

impl Observer for Custom {
    fn wants(&mut self, node: Node<'_>) -> bool {
        self.0 += usize::from(node.op() == "CUSTOM");
        false
    }

    fn observe(&mut self, _: Computed<'_>) -> bool {
        true
    }
}

/// One dictionary for gate and up: the tables are made once for both, and the logits are those of the dense twin.
#[test]
fn what_gate_and_up_look_up_is_made_once_where_they_have_one_dictionary() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let base = RandomModel { other_type: Type::F32, ..RandomModel::default() };
    base.write(Path::new(&path("base.gguf"))).unwrap();
    let run = |line: &str| {
        let line = line.replace("DIR", folder.path().to_str().unwrap());
        let _ = Run::of("statecells-build", line.split_whitespace()).ok();
    };
    let mut operations = [0; 2];
    for (n, more) in operations.iter_mut().zip(["", "--share-dict gate,up"]) {
        run(&format!("-i DIR/base.gguf -o DIR/coded.gguf --no-calib --S 6 --force {more}"));
        run("-i DIR/coded.gguf --decode DIR/dense.gguf --decode-type f32 --force");
        let coded = load_coded(Path::new(&path("coded.gguf"))).unwrap();
        let dense = load_dense(Path::new(&path("dense.gguf"))).unwrap();
        for (pace, n_threads) in [(Pace::Single, 1), (Pace::Batch, 2)] {
            let of = |model| logits(model, &random_tokens(), pace, n_threads);
            let distance = distance(&of(&dense), &of(&coded));
            assert!(distance <= TOLERANCE_SECTIONS, "{more}, {pace:?}: {distance}");
        }
        let params = ContextParams { n_ctx: 8, n_batch: 8, n_threads: 1, cache_type: Type::F32 };
        let mut context = Context::with_observer(&coded, params, Custom::default()).unwrap();
        context.decode(&[3], Outputs::All).unwrap();
        *n = context.observer().0;
    }
    // Of each of two layers: tables for gate, up and down, and three look-ups.
    assert_eq!(operations, [12, 10]);
}

/// On weights and activations as training makes them, some of them thousands of times the others.
#[test]
fn the_same_on_smollm2() {
    let Some(path) = smollm2() else { return };
    let folder = TempDir::new().unwrap();
    let mut base = ModelFile::read(&path);
    // Weights in blocks round their inputs to 8 bits, and what differs in the last place then jumps.
    base.widen();
    let text = "The state of the union is strong, because the people are.";
    let tokens = tokenize(&path, text);
    let global = |dict_type| Coding::global(Scheme::SignVals, dict_type);
    let seeddelta = Coding::seeddelta("circulant+diagonal", false);
    for coding in [global(DictType::F16), global(DictType::F32), Coding::sections(0.001), seeddelta]
    {
        let coding = Coding { layers: vec![0, 1, 2], ..coding };
        let worst = worst_distance(folder.path(), &Twins::of(&base, &coding), &tokens);
        let tolerance = match coding.method {
            Method::Sections(_) => TOLERANCE_SECTIONS_SMOLLM2,
            _ => tolerance(&coding),
        };
        assert!(worst <= tolerance, "{:?}: {worst}", coding.method);
    }
}

fn tokenize(model: &Path, text: &str) -> Vec<Token> {
    load_dense(model).unwrap().tokenize(text, true, false).unwrap()
}
