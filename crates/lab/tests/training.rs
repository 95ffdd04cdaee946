//! A short training: it learns, stops and goes on to the same bytes, and llama.cpp agrees with it.

use std::fs;
use std::path::Path;

use lab::tiny::batch::Encoded;
use lab::tiny::dataset::{Sizes, generate};
use lab::tiny::model::Config;
use lab::tiny::tasks::{Example, Task};
use lab::tiny::train::{Hyperparameters, Trainer, of_tasks, score};
use lab::tiny::vocabulary::tokenize;
use lab::tiny::{checkpoint, export};
use llama::{Backend, Context, ContextParams, ModelParams, Outputs};

fn data() -> [Vec<Example>; 3] {
    generate(1, Sizes { train: 2_000, validation: 40, test: 40 }).unwrap()
}

fn hyper(steps: u64) -> Hyperparameters {
    let config = Config { n_layers: 2, n_embd: 64, n_ff: 128, n_heads: 2, ..Config::default() };
    Hyperparameters { config, steps, rows: 8, length: 48, rate: 3e-3, seed: 1 }
}

/// The model of `trainer` as a file.
fn exported(trainer: &Trainer, folder: &Path) -> Vec<u8> {
    let path = folder.join("model.gguf");
    export::write(&trainer.model, &path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn a_stopped_training_goes_on_to_the_same_bytes_and_other_arguments_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [train, ..] = data();
    let train = of_tasks(&train);
    let mut whole = Trainer::new(hyper(6), train.clone()).unwrap();
    let mut stopped = Trainer::new(hyper(6), train.clone()).unwrap();
    for _ in 0..6 {
        whole.step().unwrap();
    }
    for _ in 0..2 {
        stopped.step().unwrap();
    }
    let path = folder.path().join("state");
    checkpoint::save(&stopped, &path).unwrap();
    let mut resumed = checkpoint::resume(&path, hyper(6), train.clone()).unwrap();
    while !resumed.is_done() {
        resumed.step().unwrap();
    }
    assert_eq!(exported(&whole, folder.path()), exported(&resumed, folder.path()));
    assert_ne!(exported(&whole, folder.path()), exported(&stopped, folder.path()));

    let message = checkpoint::resume(&path, hyper(7), train).err().unwrap().to_string();
    assert!(message.contains("other arguments"), "{message}");
    fs::write(&path, b"nothing").unwrap();
    let message = checkpoint::hyperparameters(&path).unwrap_err().to_string();
    assert!(message.contains("is no checkpoint"), "{message}");
}

/// Half a minute of training on two cores: far from done, but no chance either.
#[test]
fn a_short_training_has_visibly_learned_and_llama_cpp_gives_the_same_answers() {
    let folder = tempfile::tempdir().unwrap();
    let [train, _, test] = data();
    let copies: Vec<Example> = train.into_iter().filter(|e| e.task == Task::Brackets).collect();
    let test: Vec<Example> = test.into_iter().filter(|e| e.task == Task::Brackets).collect();
    let mut trainer = Trainer::new(hyper(400), of_tasks(&copies)).unwrap();
    let loss_before = trainer.step().unwrap().loss;
    let rate = |t: &Trainer| score(&t.model, &test).unwrap()[2].1;
    let before = rate(&trainer).exact_rate();
    while !trainer.is_done() {
        trainer.step().unwrap();
    }
    let after = rate(&trainer);
    println!(
        "loss {loss_before}, exact {before} -> {}, perplexity {}",
        after.exact_rate(),
        after.perplexity()
    );
    assert!(before < 0.2 && after.exact_rate() > 0.5, "{before} {after:?}");
    assert!(f64::from(loss_before) > 3.0 && after.perplexity() < 1.6, "{after:?}");

    let path = folder.path().join("model.gguf");
    export::write(&trainer.model, &path).unwrap();
    let exact = test.iter().filter(|e| greedy(&path, e) == e.line()).count();
    // The file rounds to F16, which may tip an answer that was a toss-up.
    assert!(exact.abs_diff(after.n_exact) <= 1, "{exact} {after:?}");
}

#[test]
fn a_plain_text_is_learned_too() {
    let text = "the quick brown fox jumps over the lazy dog. ".repeat(60);
    let mut trainer = Trainer::new(hyper(150), Encoded::of_text(&text, 48)).unwrap();
    let before = trainer.step().unwrap().loss;
    let mut after = before;
    while !trainer.is_done() {
        after = trainer.step().unwrap().loss;
    }
    assert!(before > 4.0 && after < 1.0, "{before} {after}");
    assert!(Trainer::new(hyper(60), Encoded::of_text("short", 48)).is_err());
}

/// Prompt and answer as llama.cpp continues it.
fn greedy(path: &Path, example: &Example) -> String {
    let model = llama::Model::load(Backend::init(), path, &ModelParams::default()).unwrap();
    let params =
        ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, cache_type: ggml::Type::F32 };
    let mut context = Context::new(&model, params).unwrap();
    let mut tokens = model.tokenize(&example.prompt, true, false).unwrap();
    context.decode(&tokens, Outputs::Last).unwrap();
    let newline = tokenize("\n")[0] as i32;
    let mut text = example.prompt.clone();
    let mut last = tokens.len() - 1;
    for _ in 0..12 {
        let logits = context.logits(last).unwrap();
        let best =
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32;
        if best == newline {
            return text + "\n";
        }
        let known = "abcdefghijklmnopqrstuvwxyz0123456789+=()[]";
        let c = known.chars().find(|c| tokenize(&c.to_string())[0] as i32 == best);
        text.push(c.unwrap_or('?'));
        tokens = vec![best];
        context.decode(&tokens, Outputs::Last).unwrap();
        last = 0;
    }
    text
}
