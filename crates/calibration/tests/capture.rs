//! Capture on small random models: what is collected is what an observer of its own sees.

use std::collections::BTreeMap;

use calibration::PassageKind;
use calibration::capture::{Capture, CaptureError, CaptureParams, Contexts, OwnText, Text};
use calibration::{CalibratedInput, Fitted};
use format::{InputId, InputRole};
use ggml::Type;
use ggml::gguf::GgufWriter;
use llama::{
    Backend, Computed, Context, ContextParams, Model, ModelParams, Node, Observer, Outputs, Token,
};

const N_CTX: usize = 32;
const DIMS: [(InputRole, usize); 2] = [(InputRole::FfnIn, 64), (InputRole::FfnDown, 192)];

/// Rounding of sums of up to 300 products in F32, in another order.
const TOLERANCE: f64 = 1e-4;

fn model(dir: &tempfile::TempDir, change: impl FnOnce(&mut fixtures::models::Model)) -> Model {
    let path = dir.path().join("model.gguf");
    let mut description = fixtures::models::Model::default();
    change(&mut description);
    description.write(&path).unwrap();
    Model::load(Backend::init(), &path, &ModelParams::default()).unwrap()
}

fn tokens(model: &Model) -> Vec<Token> {
    let mut text = Text::new(model);
    // No passage occurs twice.
    let lines: String = (0..60).map(|i| format!("{} of {}\n", i * i * 7919, i * 104_729)).collect();
    text.push(&lines, false).unwrap();
    text.tokens().to_vec()
}

fn all_inputs(model: &Model) -> BTreeMap<InputId, usize> {
    let of_layer = |layer| DIMS.map(|(role, d)| (InputId { layer, role }, d));
    (0..model.n_layer()).flat_map(of_layer).collect()
}

type Captured = Result<BTreeMap<InputId, CalibratedInput>, CaptureError>;

fn capture(
    model: &Model,
    n_threads: usize,
    change: impl FnOnce(&mut CaptureParams<'_>),
) -> Captured {
    capture_inputs(model, &all_inputs(model), &|| false, |params| {
        params.n_threads = n_threads;
        change(params);
    })
}

fn capture_inputs(
    model: &Model,
    inputs: &BTreeMap<InputId, usize>,
    stop: &(dyn Fn() -> bool + Sync),
    change: impl FnOnce(&mut CaptureParams<'_>),
) -> Captured {
    let tokens = tokens(model);
    let contexts = Contexts::new(tokens.len(), 10 * N_CTX, N_CTX, model.bos().is_some())?;
    let mut params = CaptureParams {
        inputs,
        max_moment_dim: 1000,
        max_expert_bytes: 1 << 30,
        n_ctx: N_CTX,
        n_fitted: contexts.n_tokens(PassageKind::Fitted) as u64,
        n_held_out: contexts.n_tokens(PassageKind::HeldOut) as u64,
        n_samples: 50,
        n_holdout_samples: 5,
        seed: 1,
        n_threads: 1,
        stop,
    };
    change(&mut params);
    let mut capture = Capture::new(model, &params)?;
    for (kind, passage) in contexts.passages(&tokens) {
        capture.run(kind, passage)?;
    }
    Ok(capture.finish())
}

/// The inputs of one weight, as llama.cpp hands them over.
struct Rows(&'static str, Vec<Vec<f32>>);

impl Observer for Rows {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.op() == "MUL_MAT" && node.source(0).is_some_and(|w| w.name() == self.0)
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        self.1.extend(node.source_rows(1).unwrap().map(<[f32]>::to_vec));
        true
    }
}

/// Inputs of `weight` in the contexts of `kind`, from an observer that only copies.
fn expected(model: &Model, weight: &'static str, kind: PassageKind) -> Vec<Vec<f32>> {
    let tokens = tokens(model);
    let contexts = Contexts::new(tokens.len(), 10 * N_CTX, N_CTX, model.bos().is_some()).unwrap();
    let params = ContextParams { n_ctx: 256, n_batch: 32, n_threads: 1, cache_type: Type::F16 };
    let mut context = Context::with_observer(model, params, Rows(weight, vec![])).unwrap();
    for (_, passage) in contexts.passages(&tokens).filter(|(k, _)| *k == kind) {
        context.clear();
        let with_bos: Vec<Token> = model.bos().into_iter().chain(passage.to_vec()).collect();
        assert_eq!(with_bos.len(), N_CTX);
        context.decode(&with_bos, Outputs::All).unwrap();
    }
    std::mem::take(&mut context.observer_mut().1)
}

fn assert_is_sum(h: &[f32], rows: &[Vec<f32>]) {
    let d = rows[0].len();
    assert_eq!(h.len(), d * d);
    for i in 0..d {
        for j in 0..d {
            let sum: f64 = rows.iter().map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
            let size: f64 = rows.iter().map(|x| f64::from((x[i] * x[j]).abs())).sum();
            let got = f64::from(h[i * d + j]);
            assert!((got - sum).abs() <= TOLERANCE * size, "{i} {j}: {got} {sum}");
        }
    }
}

#[test]
fn moments_are_those_of_the_inputs_of_every_layer_and_the_hold_out_is_disjoint() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| {});
    let captured = capture(&model, 2, |_| {}).unwrap();
    assert_eq!(captured.len(), 4);
    for (layer, role, weight) in [
        (0, InputRole::FfnIn, "blk.0.ffn_gate.weight"),
        (0, InputRole::FfnIn, "blk.0.ffn_up.weight"),
        (1, InputRole::FfnIn, "blk.1.ffn_up.weight"),
        (1, InputRole::FfnDown, "blk.1.ffn_down.weight"),
    ] {
        let input = &captured[&InputId { layer, role }];
        let fitted = expected(&model, weight, PassageKind::Fitted);
        let held_out = expected(&model, weight, PassageKind::HeldOut);
        assert_eq!((fitted.len(), held_out.len()), (9 * N_CTX, N_CTX));
        let Fitted::Moment(moment) = &input.fitted else { panic!("short inputs") };
        assert_eq!(moment.n_tokens(), fitted.len() as u64);
        assert_is_sum(&moment.sum(), &fitted);
        assert_is_sum(&input.holdout_moment.as_ref().unwrap().sum(), &held_out);
        assert_eq!(input.holdout.len(), 5);
        for x in input.holdout_samples().chunks(input.d()) {
            assert!(held_out.iter().any(|row| close(x, row)), "a sample is a held-out input");
            // Every context begins with the same token, so that its inputs are the same too.
            let is_first = held_out.iter().step_by(N_CTX).any(|row| close(x, row));
            let is_fitted = fitted.iter().any(|row| close(x, row));
            assert!(is_first || !is_fitted, "and not a fitted one");
        }
    }
}

fn close(a: &[f32], b: &[f32]) -> bool {
    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= largest / 2048.0)
}

#[test]
fn long_inputs_are_sampled_from_the_fitted_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| {});
    let captured = capture(&model, 1, |p| p.max_moment_dim = 100).unwrap();
    let fitted = expected(&model, "blk.1.ffn_down.weight", PassageKind::Fitted);
    let input = &captured[&InputId { layer: 1, role: InputRole::FfnDown }];
    assert!(input.second_moment().is_none() && input.holdout_moment.is_none());
    let samples = input.fitted_samples().unwrap();
    assert_eq!(samples.len(), 50);
    assert!(samples.to_f32().chunks(192).all(|x| fitted.iter().any(|row| close(x, row))));
    let other = capture(&model, 1, |p| {
        p.max_moment_dim = 100;
        p.seed = 2;
    });
    assert_ne!(other.unwrap(), captured);
}

#[test]
fn threads_do_not_change_what_is_captured() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| {});
    let one = capture(&model, 1, |_| {}).unwrap();
    for n_threads in 2..=3 {
        assert_eq!(one, capture(&model, n_threads, |_| {}).unwrap());
    }
}

#[test]
fn models_without_gate_are_captured() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |m| m.has_gate = false);
    let captured = capture(&model, 1, |_| {}).unwrap();
    let input = &captured[&InputId { layer: 1, role: InputRole::FfnIn }];
    let fitted = expected(&model, "blk.1.ffn_up.weight", PassageKind::Fitted);
    let Fitted::Moment(moment) = &input.fitted else { panic!("short inputs") };
    assert_is_sum(&moment.sum(), &fitted);
}

#[test]
fn what_the_graph_does_not_have_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| {});
    let missing = BTreeMap::from([(InputId { layer: 7, role: InputRole::FfnDown }, 192)]);
    let error = capture_inputs(&model, &missing, &|| false, |_| {}).unwrap_err().to_string();
    assert!(error.contains("blk.7.ffn_down: 0 of 32 tokens"), "{error}");
    let wrong = BTreeMap::from([(InputId { layer: 0, role: InputRole::FfnDown }, 191)]);
    let error = capture_inputs(&model, &wrong, &|| false, |_| {}).unwrap_err().to_string();
    assert!(error.contains("192 values instead of 191"), "{error}");
    for n_ctx in [0, 15, 513] {
        let error = capture(&model, 1, |p| p.n_ctx = n_ctx).unwrap_err();
        assert!(matches!(error, CaptureError::ContextLength { .. }), "{error}");
    }
}

#[test]
fn capture_stops_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| {});
    let error = capture_inputs(&model, &all_inputs(&model), &|| true, |_| {}).unwrap_err();
    assert!(matches!(error, CaptureError::Stopped), "{error}");
}

#[test]
fn own_text_follows_from_seed_and_number_and_not_from_threads() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir, |_| ());
    let write = |n_threads, seed, numbers| {
        let mut own = OwnText::new(&model, N_CTX, n_threads, seed).unwrap();
        own.write(numbers, &mut || false).unwrap()
    };
    let text = write(1, 3, 0..5);
    let n_body = N_CTX - usize::from(model.bos().is_some());
    assert_eq!(text.len(), 5 * n_body);
    assert!(text.iter().all(|t| usize::try_from(*t).is_ok_and(|t| t < model.n_vocab())));
    assert_eq!(write(2, 3, 0..5), text);
    assert_ne!(write(1, 4, 0..5), text);
    let passages: std::collections::BTreeSet<&[Token]> = text.chunks(n_body).collect();
    assert_eq!(passages.len(), 5, "no two are the same");
    assert_ne!(write(1, 3, 8..13), text, "the same openings, other numbers");
    let mut own = OwnText::new(&model, N_CTX, 1, 3).unwrap();
    assert!(matches!(own.write(0..2, &mut || true), Err(CaptureError::Stopped)));
    assert_eq!(own.write(0..5, &mut || false).unwrap(), text, "and from the beginning again");
}

#[test]
fn a_damaged_model_writes_no_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nan.gguf");
    let damage = |name: &str, weights: &mut [f32]| {
        if name == "output_norm.weight" {
            weights[0] = f32::NAN;
        }
    };
    fixtures::models::Model::default().write_with(&path, |_| Ok(()), damage).unwrap();
    let model = Model::load(Backend::init(), &path, &ModelParams::default()).unwrap();
    let mut own = OwnText::new(&model, N_CTX, 1, 3).unwrap();
    assert!(matches!(own.write(0..2, &mut || false), Err(CaptureError::Predictions)));
}

#[test]
fn every_second_passage_of_a_model_that_talks_is_a_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("talks.gguf");
    let template = "<|im_start|>{{ role }} {{ content }}<|im_end|>";
    let talks = |writer: &mut GgufWriter| writer.set("tokenizer.chat_template", template);
    fixtures::models::Model::default().write_with(&path, talks, |_, _| ()).unwrap();
    let model = Model::load(Backend::init(), &path, &ModelParams::default()).unwrap();
    let begins = model.tokenize("<|im_start|>user\n", false, true).unwrap();
    let mut own = OwnText::new(&model, N_CTX, 1, 3).unwrap();
    let text = own.write(0..6, &mut || false).unwrap();
    let n_body = text.len() / 6;
    let talking: Vec<bool> = text.chunks(n_body).map(|p| p.starts_with(&begins)).collect();
    assert_eq!(talking, [true, false, true, false, true, false]);
}
