//! Parts of a model, one after the other, are the whole model.

use fixtures::installed;
use fixtures::models;
use ggml::Type;
use llama::{
    Backend, Carried, Computed, Context, ContextParams, Layers, LlamaError, Model, ModelParams,
    Node, Observer, Outputs, Part, Point, StandIn, Token,
};

const PARAMS: ContextParams =
    ContextParams { n_ctx: 64, n_batch: 64, n_threads: 2, cache_type: Type::F16 };

fn load(path: &std::path::Path) -> Model {
    Model::load(Backend::init(), path, &ModelParams::default()).unwrap()
}

fn some_tokens(model: &Model, n: usize) -> Vec<Token> {
    let n_vocab = model.n_vocab() - 3;
    (0..n).map(|i| (3 + i * 7919 % n_vocab) as Token).collect()
}

/// Keeps the last node of this name.
struct Keeper(String, Vec<f32>);

impl Observer for Keeper {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name() == self.0
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        self.1 = node.rows().unwrap().flatten().copied().collect();
        true
    }
}

/// The hidden state behind the last layer, as a plain evaluation computes it.
fn whole(model: &Model, tokens: &[Token]) -> Vec<f32> {
    let keeper = Keeper(format!("l_out-{}", model.n_layer() - 1), Vec::new());
    let mut context = Context::with_observer(model, PARAMS, keeper).unwrap();
    context.decode(tokens, Outputs::All).unwrap();
    std::mem::take(&mut context.observer_mut().1)
}

fn check(model: &Model) {
    let tokens = some_tokens(model, 40);
    let expected = whole(model, &tokens);
    assert!(expected.iter().any(|v| *v != 0.0));
    let mut layers = Layers::new(model, PARAMS).unwrap();
    let mut state = vec![0.0; tokens.len() * model.n_embd()];
    let mut next = state.clone();
    for layer in 0..model.n_layer() {
        let weight = format!("blk.{layer}.ffn_up.weight");
        let middle = Point::Middle { layer, weight: &weight };
        for (from, to) in [(Point::Before(layer), middle), (middle, Point::Before(layer + 1))] {
            layers.run(&Part::new(from, to), &tokens, Carried::alone(&state), &mut next).unwrap();
            std::mem::swap(&mut state, &mut next);
        }
    }
    assert_eq!(state, expected, "halves of layers");
    let part = Part::new(Point::Before(0), Point::Before(model.n_layer()));
    layers.run(&part, &tokens, Carried::alone(&[]), &mut next).unwrap();
    assert_eq!(next, expected, "all layers");
}

#[test]
fn parts_one_after_the_other_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    for has_gate in [true, false] {
        models::Model { n_layers: 3, has_gate, ..Default::default() }.write(&path).unwrap();
        check(&load(&path));
    }
}

#[test]
fn parts_of_a_real_model_are_the_whole() {
    let Some(path) = installed::model() else { return };
    check(&load(&path));
}

#[test]
fn stand_ins_take_the_place_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let made = models::Model { n_layers: 2, ..Default::default() };
    made.write(&path).unwrap();
    let (name, other) = ("blk.0.ffn_down.weight", folder.path().join("o.gguf"));
    let mut zeros = Vec::new();
    made.write_with(
        &other,
        |_| Ok(()),
        |tensor, values| {
            if tensor == name {
                values.iter_mut().for_each(|v| *v = -*v);
                zeros = values.to_vec();
            }
        },
    )
    .unwrap();
    let (model, other) = (load(&path), load(&other));
    let tokens = some_tokens(&model, 20);
    let expected = whole(&other, &tokens);
    let stand_ins = [StandIn::new(name, &zeros, made.n_ff, Type::F32).unwrap()];
    let part = Part {
        stand_ins: &stand_ins,
        watched: Some(name),
        ..Part::new(Point::Before(0), Point::Before(1))
    };
    let mut layers = Layers::new(&model, PARAMS).unwrap();
    let mut state = vec![0.0; tokens.len() * model.n_embd()];
    let gain = layers.run(&part, &tokens, Carried::alone(&[]), &mut state).unwrap();
    assert_eq!(gain, 1.0);
    let (rows, columns) = (layers.watched().output.len(), layers.watched().input.len());
    assert_eq!((rows, columns), (tokens.len() * model.n_embd(), tokens.len() * made.n_ff));
    let mut last = state.clone();
    layers
        .run(
            &Part::new(Point::Before(1), Point::Before(2)),
            &tokens,
            Carried::alone(&state),
            &mut last,
        )
        .unwrap();
    assert_eq!(last, expected);

    let wrong = [StandIn::new(name, &zeros[..64 * 64], 64, Type::F32).unwrap()];
    let part = Part { stand_ins: &wrong, ..part };
    let error = layers.run(&part, &tokens, Carried::alone(&[]), &mut state).unwrap_err();
    assert!(matches!(&error, LlamaError::Part(reason) if reason.contains(name)), "{error}");
}

#[test]
fn products_left_out_count_as_zero() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    // As many inputs as outputs: the zeros would fit where the input is.
    let made = models::Model { n_layers: 1, n_ff: 64, ..Default::default() };
    made.write(&path).unwrap();
    let model = load(&path);
    assert_eq!(model.n_embd(), made.n_ff);
    let tokens = some_tokens(&model, 20);
    let name = "blk.0.ffn_down.weight";
    let mut layers = Layers::new(&model, PARAMS).unwrap();
    let mut run = |stand_ins: &[StandIn], omits| {
        let part = Part::new(Point::Before(0), Point::Before(1));
        let part = Part { stand_ins, watched: Some(name), omits, ..part };
        let mut state = vec![0.0; tokens.len() * model.n_embd()];
        assert_eq!(layers.run(&part, &tokens, Carried::alone(&[]), &mut state).unwrap(), 1.0);
        (state, layers.watched().input.clone())
    };
    let zeros = vec![0.0; made.n_ff * model.n_embd()];
    let zeros = StandIn::new(name, &zeros, made.n_ff, Type::F32).unwrap();
    let (computed, _) = run(&[], false);
    let (with_zeros, input) = run(&[zeros], false);
    assert_eq!(run(&[], true), (with_zeros.clone(), input));
    assert_ne!(computed, with_zeros);
}

#[test]
fn places_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    models::Model::default().write(&path).unwrap();
    let model = load(&path);
    let mut layers = Layers::new(&model, PARAMS).unwrap();
    let mut check = |point: Point<'_>| layers.check(point, model.n_embd());
    for layer in 0..2 {
        check(Point::Before(layer + 1)).unwrap();
        check(Point::Middle { layer, weight: &format!("blk.{layer}.ffn_gate.weight") }).unwrap();
    }
    let missing = Point::Middle { layer: 0, weight: "blk.0.ffn_none.weight" };
    for (point, said) in [(missing, "ffn_none"), (Point::Before(usize::MAX), "no layer")] {
        let error = check(point).unwrap_err();
        assert!(matches!(&error, LlamaError::Part(reason) if reason.contains(said)), "{error}");
    }
    let mut out = vec![0.0; 7];
    let part = Part::new(Point::Before(0), Point::Before(1));
    let error = layers.run(&part, &[3, 4], Carried::alone(&[]), &mut out).unwrap_err();
    assert!(
        matches!(&error, LlamaError::Part(reason) if reason.contains("not 7 values")),
        "{error}"
    );
    // The context is as good as new afterwards.
    let mut out = vec![0.0; 2 * model.n_embd()];
    layers.run(&part, &[3, 4], Carried::alone(&[]), &mut out).unwrap();
}
