//! Several contexts of one coded model: what `--statecells-check` finds in one is no matter of the others.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dictionary::DictType;
use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::{ModelFile, Tensor};
use format::{MatrixId, Role, Scheme};
use ggml::Type;
use half::f16;
use llama::{
    Backend, Context, ContextParams, LlamaError, Model, ModelParams, Outputs, Override, Token,
};
use tempfile::TempDir;

const UP: MatrixId = MatrixId { layer: 0, role: Role::Up };

/// Tokens of bytes: after three special ones every byte has one.
const fn token(letter: u8) -> Token {
    3 + letter as Token
}

const SOUND: [Token; 3] = [token(b'a'), token(b'b'), token(b'c')];
const BAD: [Token; 3] = [token(b'a'), token(b'b'), token(b'z')];

/// A model whose `blk.0.ffn_up` overflows for the letter `z` alone: only this letter has an input 0, the first attention adds
/// nothing, and the atoms are huge there.
fn model(keep_dense: bool) -> ModelFile {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("base.gguf");
    let base =
        fixtures::models::Model { other_type: Type::F32, ..fixtures::models::Model::default() };
    base.write(&path).unwrap();
    let base = ModelFile::read(&path);
    let coding = Coding { keep_dense, ..Coding::global(Scheme::SignRowScale, DictType::F32) };
    let mut file = Twins::of(&base, &coding).coded;
    change(&mut file, "token_embd.weight", |values, d_in| {
        values.chunks_exact_mut(d_in).for_each(|row| row[0] = 0.0);
        let z = token(b'z') as usize;
        values[z * d_in..(z + 1) * d_in].fill(0.0);
        values[z * d_in] = 1.0;
    });
    change(&mut file, "blk.0.attn_output.weight", |values, _| values.fill(0.0));
    change(&mut file, &UP.with_suffix("dict"), |values, d_in| {
        values.chunks_exact_mut(d_in).for_each(|atom| atom[0] = 1e38);
    });
    let scales = file.tensor_mut(&UP.with_suffix("row_scale"));
    scales.data = f16::MAX.to_le_bytes().repeat(scales.data.len() / 2);
    file
}

/// Changes an F32 tensor; `by` gets its values and the length of a row.
fn change(file: &mut ModelFile, name: &str, by: impl Fn(&mut [f32], usize)) {
    let tensor = file.tensor(name);
    let (dims, mut values) = (tensor.dims.clone(), tensor.to_f32());
    by(&mut values, dims[0]);
    *file.tensor_mut(name) = Tensor::from_f32(name, &dims, &values);
}

fn load(file: &ModelFile, folder: &Path) -> Model {
    let path = folder.join("model.gguf");
    file.write(&path);
    let keys = ["statecells.enable", "statecells.check"];
    let overrides = keys.map(|key| (key.to_owned(), Override::Bool(true))).into();
    Model::load(Backend::init(), &path, &ModelParams { overrides, ..Default::default() }).unwrap()
}

fn context(model: &Model) -> Context<'_> {
    let params = ContextParams { n_ctx: 16, n_batch: 16, n_threads: 1, cache_type: Type::F32 };
    Context::new(model, params).unwrap()
}

/// The logits after the last of `tokens` in a new sequence.
fn evaluate(context: &mut Context<'_>, tokens: &[Token]) -> Result<Vec<f32>, LlamaError> {
    context.clear();
    context.decode(tokens, Outputs::Last)?;
    Ok(context.logits(tokens.len() - 1)?.to_vec())
}

#[test]
fn a_finding_stops_the_context_that_made_it_and_no_other() {
    let folder = TempDir::new().unwrap();
    let model = load(&model(false), folder.path());
    let expected = evaluate(&mut context(&model), &SOUND).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| {
            let mut context = context(&model);
            let mut n_runs = 0;
            while !over.load(Ordering::Relaxed) {
                let said = evaluate(&mut context, &BAD).unwrap_err().to_string();
                assert!(said.contains("blk.0.ffn_up"), "{said}");
                n_runs += 1;
            }
            n_runs
        });
        let mut sound = context(&model);
        for _ in 0..1000 {
            let found = evaluate(&mut sound, &SOUND);
            if found.as_ref().ok() != Some(&expected) {
                over.store(true, Ordering::Relaxed);
                panic!("{:?}", found.map(|_| "other logits"));
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(bad.join().unwrap() > 10);
    });
}

#[test]
fn every_context_goes_on_with_the_dense_weight_that_one_of_them_needs() {
    let folder = TempDir::new().unwrap();
    let model = load(&model(true), folder.path());
    let (mut first, mut second) = (context(&model), context(&model));
    // Graphs with the code: all is well so far.
    let coded = evaluate(&mut first, &SOUND).unwrap();
    assert_eq!(evaluate(&mut second, &SOUND).unwrap(), coded);
    let dense = evaluate(&mut first, &BAD).unwrap();
    assert!(dense.iter().all(|v| v.is_finite()));
    assert_eq!(evaluate(&mut second, &BAD).unwrap(), dense);
    assert_eq!(evaluate(&mut context(&model), &BAD).unwrap(), dense);
}
