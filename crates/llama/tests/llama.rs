//! The module `llama` on a real model: what observers see is what the weights and inputs give.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use fixtures::installed;
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter};
use ggml::imatrix::Imatrix;
use llama::{
    Backend, Computed, Context, ContextParams, LlamaError, Model, ModelParams, Node, Observer,
    Outputs, Override, Token,
};
use numerics::{MatMul, TiledMatMul};

const TEXT: &str = "The state of the union is strong.";
const GATE: &str = "blk.0.ffn_gate.weight";
const PARAMS: ContextParams =
    ContextParams { n_ctx: 256, n_batch: 64, n_threads: 1, cache_type: Type::F16 };

/// llama.cpp rounds the inputs of quantized weights to 127 steps of each block of 32: a relative error of at
/// most `sqrt(32) / (127 * sqrt(12))`, when one value holds all of the block.
const INPUT_ROUNDING: f32 = 0.0129;

fn load() -> Option<Model> {
    Some(Model::load(Backend::init(), &installed::model()?, &ModelParams::default()).unwrap())
}

fn tokens(model: &Model) -> Vec<Token> {
    model.tokenize(TEXT, true, false).unwrap()
}

/// Keeps inputs and outputs of the products with weights that `suffix` ends.
#[derive(Default)]
struct Recorder {
    suffix: &'static str,
    seen: Vec<(String, Vec<f32>, Vec<f32>)>,
}

impl Observer for Recorder {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.op() == "MUL_MAT" && node.source(0).is_some_and(|w| w.name().ends_with(self.suffix))
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        let weight = node.source(0).unwrap().name().to_owned();
        let input = node.source_rows(1).unwrap().flatten().copied().collect();
        self.seen.push((weight, input, node.rows().unwrap().flatten().copied().collect()));
        true
    }
}

#[test]
fn observed_products_are_weight_times_input() {
    let Some(model) = load() else { return };
    let recorder = Recorder { suffix: GATE, ..Default::default() };
    let mut context = Context::with_observer(&model, PARAMS, recorder).unwrap();
    let tokens = tokens(&model);
    context.decode(&tokens, Outputs::All).unwrap();

    let [(name, input, output)] = &context.observer().seen[..] else { panic!("seen once") };
    assert_eq!(name, GATE);
    let file = GgufFile::open(model.path()).unwrap();
    let weight = file.to_f32(file.tensor(GATE).unwrap()).unwrap();
    assert_eq!(input.len(), tokens.len() * model.n_embd());
    let mut expected = vec![0.0; output.len()];
    TiledMatMul.mul_mat(&weight, input, model.n_embd(), &mut expected);
    let error: f32 = expected.iter().zip(output).map(|(a, b)| (a - b) * (a - b)).sum();
    let energy: f32 = expected.iter().map(|a| a * a).sum();
    assert!(energy > 0.0 && (error / energy).sqrt() < INPUT_ROUNDING, "{error} of {energy}");
}

#[test]
fn every_ffn_matrix_of_every_layer_is_seen_for_every_token() {
    let Some(model) = load() else { return };
    let n_tokens = tokens(&model).len();
    let mut inputs = Vec::new();
    for suffix in ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"] {
        let recorder = Recorder { suffix, ..Default::default() };
        let mut context = Context::with_observer(&model, PARAMS, recorder).unwrap();
        context.decode(&tokens(&model), Outputs::All).unwrap();
        let seen = std::mem::take(&mut context.observer_mut().seen);
        assert_eq!(seen.len(), model.n_layer(), "{suffix}");
        assert!(seen.iter().all(|(_, input, _)| input.len().is_multiple_of(n_tokens)));
        let outputs = seen.iter().all(|(_, _, output)| output.len().is_multiple_of(n_tokens));
        assert!(outputs, "the last layer too");
        inputs.push(seen.into_iter().map(|(_, input, _)| input).collect::<Vec<_>>());
    }
    assert_eq!(inputs[0], inputs[1], "gate and up share their input");
}

#[test]
fn logits_do_not_depend_on_the_observer_and_predict_text() {
    let Some(model) = load() else { return };
    let tokens = tokens(&model);
    let mut plain = Context::new(&model, PARAMS).unwrap();
    plain.decode(&tokens, Outputs::Last).unwrap();
    let recorder = Recorder { suffix: "ffn_up.weight", ..Default::default() };
    let mut watched = Context::with_observer(&model, PARAMS, recorder).unwrap();
    watched.decode(&tokens, Outputs::Last).unwrap();
    let last = tokens.len() - 1;
    assert_eq!(plain.logits(last).unwrap(), watched.logits(last).unwrap());
    assert_eq!(plain.logits(last).unwrap().len(), model.n_vocab());
    assert!(matches!(plain.logits(0), Err(LlamaError::NoLogits(0))));
    assert!(matches!(plain.logits(last + 1), Err(LlamaError::NoLogits(_))));

    // In pieces, and again after clearing, the same text leads to the same guess.
    let guess = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let expected = guess(plain.logits(last).unwrap());
    plain.clear();
    plain.decode(&tokens[..3], Outputs::Last).unwrap();
    plain.decode(&tokens[3..], Outputs::All).unwrap();
    assert_eq!(plain.n_past(), tokens.len());
    assert_eq!(guess(plain.logits(last - 3).unwrap()), expected);
}

#[test]
fn importance_is_the_mean_square_of_what_observers_see() {
    const N: usize = 64;
    let (Some(program), Some(model)) = (installed::program("llama-imatrix"), load()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (text_path, imatrix_path) = (dir.path().join("text"), dir.path().join("imatrix.gguf"));
    let text = TEXT.repeat(2 * N);
    std::fs::write(&text_path, &text).unwrap();
    let output = Command::new(program)
        .args(["-c", &N.to_string(), "--chunks", "1", "--no-ppl", "-t", "1", "-m"])
        .args([model.path().as_os_str(), "-f".as_ref(), text_path.as_os_str()])
        .args(["-o".as_ref(), imatrix_path.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut tokens = model.tokenize(&text, true, false).unwrap();
    tokens.truncate(N);
    tokens[0] = model.bos().unwrap_or(tokens[0]); // as llama-imatrix begins every chunk
    let recorder = Recorder { suffix: GATE, ..Default::default() };
    let mut context = Context::with_observer(&model, PARAMS, recorder).unwrap();
    context.decode(&tokens, Outputs::All).unwrap();
    let (_, input, _) = &context.observer().seen[0];

    let n_in = model.n_embd();
    let importance = Imatrix::open(&imatrix_path).unwrap().importance(GATE, n_in, None).unwrap();
    for (i, real) in importance.iter().enumerate() {
        let sum: f32 = input.iter().skip(i).step_by(n_in).map(|x| x * x).sum();
        let ours = sum / N as f32;
        assert!((real - ours).abs() <= 1e-3 * ours, "input {i}: {real} {ours}");
    }
}

/// Stops, or panics, at the first product it sees.
struct Quitter {
    panics: bool,
}

impl Observer for Quitter {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.op() == "MUL_MAT"
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        assert!(!self.panics, "at {}", node.name());
        false
    }
}

#[test]
fn observers_may_stop_or_panic() {
    let Some(model) = load() else { return };
    let tokens = tokens(&model);
    let mut context = Context::with_observer(&model, PARAMS, Quitter { panics: false }).unwrap();
    assert!(matches!(context.decode(&tokens, Outputs::All), Err(LlamaError::Stopped)));
    assert!(matches!(context.logits(0), Err(LlamaError::NoLogits(0))));
    context.observer_mut().panics = true;
    context.clear();
    let panic = catch_unwind(AssertUnwindSafe(|| context.decode(&tokens, Outputs::All)));
    assert!(
        panic.unwrap_err().downcast_ref::<String>().is_some_and(|text| text.starts_with("at "))
    );
}

/// Sees the products with the gates of the first layers, and has enough then.
struct Content(Recorder, usize);

impl Observer for Content {
    fn wants(&mut self, node: Node<'_>) -> bool {
        self.0.wants(node)
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        self.0.observe(node)
    }

    fn has_enough(&self) -> bool {
        self.0.seen.len() == self.1
    }
}

#[test]
fn what_nobody_wants_any_more_is_not_computed_and_spoils_nothing() {
    let Some(model) = load() else { return };
    let tokens = tokens(&model);
    let recorder = || Recorder { suffix: "ffn_gate.weight", ..Default::default() };
    let mut context = Context::with_observer(&model, PARAMS, Content(recorder(), 2)).unwrap();
    let mut whole = Context::with_observer(&model, PARAMS, recorder()).unwrap();
    // The second batch reads what the first one left in the cache.
    for batch in tokens.chunks(4).take(2) {
        context.observer_mut().0.seen.clear();
        context.decode(batch, Outputs::All).unwrap();
        assert!(matches!(context.logits(0), Err(LlamaError::NoLogits(0))));
        whole.observer_mut().seen.clear();
        whole.decode(batch, Outputs::All).unwrap();
        assert!(whole.observer().seen.len() > 2);
        assert_eq!(context.observer().0.seen, whole.observer().seen[..2]);
    }
    assert_eq!(context.n_past(), whole.n_past());
}

#[test]
fn bad_batches_are_refused() {
    let Some(model) = load() else { return };
    let mut context = Context::new(&model, PARAMS).unwrap();
    let too_many = vec![0; context.n_batch() + 1];
    for batch in [&[][..], &too_many] {
        let result = context.decode(batch, Outputs::Last);
        assert!(matches!(result, Err(LlamaError::TooManyTokens { .. })));
    }
    for token in [-1, model.n_vocab() as Token, Token::MAX] {
        let result = context.decode(&[token], Outputs::Last);
        assert!(matches!(result, Err(LlamaError::UnknownToken { .. })));
    }
    let full = context.n_batch();
    while context.n_past() + full <= context.n_ctx() {
        context.decode(&too_many[..full], Outputs::Last).unwrap();
    }
    let rest = context.n_ctx() - context.n_past() + 1;
    let result = context.decode(&too_many[..rest], Outputs::Last);
    assert!(matches!(result, Err(LlamaError::TooManyTokens { .. })));
}

#[test]
fn overrides_and_refusals_reach_llama_cpp() {
    let Some(path) = installed::model() else { return };
    let key = "llama.context_length".to_owned();
    let overrides = vec![(key, Override::Int(77))];
    let params = ModelParams { mmap: false, overrides, ..Default::default() };
    assert_eq!(Model::load(Backend::init(), &path, &params).unwrap().n_ctx_train(), 77);

    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.gguf");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    let error = Model::load(Backend::init(), &cut, &ModelParams::default()).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");

    let empty = dir.path().join("empty.gguf");
    let file = std::fs::File::create(&empty).unwrap();
    let mut writer = ggml::gguf::GgufWriter::new();
    writer.set("general.architecture", "nonsense").unwrap();
    writer.write(file, |_, _| Ok(())).unwrap();
    let error =
        Model::load(Backend::init(), &empty, &ModelParams::default()).unwrap_err().to_string();
    assert!(error.contains("empty.gguf: ") && error.contains("nonsense"), "{error}");
}

#[test]
fn a_conversation_begins_as_the_chat_template_says() {
    let dir = tempfile::tempdir().unwrap();
    let before_user = |template: Option<&str>| {
        let path = dir.path().join("model.gguf");
        let add = |writer: &mut GgufWriter| match template {
            Some(template) => writer.set("tokenizer.chat_template", template),
            None => Ok(()),
        };
        fixtures::models::Model::default().write_with(&path, add, |_, _| ()).unwrap();
        Model::load(Backend::init(), &path, &ModelParams::default()).unwrap().before_user()
    };
    let chatml =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
    assert_eq!(before_user(Some(chatml)).as_deref(), Some("<|im_start|>user\n"));
    assert_eq!(before_user(Some("{{ messages }}")), None, "no form that llama.cpp knows");
    assert_eq!(before_user(None), None);
}
