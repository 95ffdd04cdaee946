//! Parts of models of many architectures, one after the other, are the whole model.

use fixtures::architectures::{self, AT_ONCE, IN_TURN, Number};
use ggml::Type;
use llama::{
    Backend, Computed, Context, ContextParams, Layers, LlamaError, Model, ModelParams, Node,
    Observer, Outputs, Part, Point, Token,
};

const PARAMS: ContextParams =
    ContextParams { n_ctx: 64, n_batch: 64, n_threads: 2, cache_type: Type::F16 };

/// Keeps the hidden states that llama.cpp names.
#[derive(Default)]
struct Named(std::collections::BTreeMap<String, Vec<f32>>);

impl Observer for Named {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name().starts_with("l_out-")
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        if let Ok(rows) = node.rows() {
            let values: Vec<f32> = rows.flatten().copied().collect();
            self.0.insert(node.name().to_owned(), values);
        }
        true
    }
}

/// Runs all parts of a model; how many of its layers can be cut in their middle.
fn check(name: &str) -> Result<usize, LlamaError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    architectures::write(name, &path).map_err(LlamaError::Part)?;
    let model = Model::load(Backend::init(), &path, &ModelParams::default())?;
    let tokens: Vec<Token> = (0..40).map(|i| (i * 79 + 3) % 120).collect();
    let mut context = Context::with_observer(&model, PARAMS, Named::default())?;
    context.decode(&tokens, Outputs::All)?;
    let named = std::mem::take(&mut context.observer_mut().0);
    let mut layers = Layers::new(&model, PARAMS)?;
    let mut state = vec![0.0; tokens.len() * model.n_embd()];
    let mut next = state.clone();
    let mut n_middles = 0;
    for layer in 0..model.n_layer() {
        let weight = format!("blk.{layer}.ffn_up.weight");
        let middle = Point::Middle { layer, weight: &weight };
        let is_cut = layers.check(middle, model.n_embd()).is_ok();
        let all = [Point::Before(layer), middle, Point::Before(layer + 1)];
        let stops = if is_cut { &all[..] } else { &[all[0], all[2]] };
        for ends in stops.windows(2) {
            layers.run(&Part::new(ends[0], ends[1]), &tokens, &state, &mut next)?;
            std::mem::swap(&mut state, &mut next);
        }
        n_middles += usize::from(is_cut);
        let expected = &named[&format!("l_out-{layer}")];
        assert!(expected.iter().all(|v| v.is_finite()), "{name}");
        assert!(state == *expected, "{name}: layer {layer}");
    }
    let part = Part::new(Point::Before(0), Point::Before(model.n_layer()));
    layers.run(&part, &tokens, &[], &mut next)?;
    assert!(state == next && state.iter().any(|v| *v != 0.0), "{name}: all layers");
    Ok(n_middles)
}

#[test]
fn parts_of_every_architecture_are_the_whole() {
    for name in IN_TURN {
        assert_eq!(check(name).unwrap(), 2, "{name}");
    }
    for name in AT_ONCE {
        assert!(check(name).unwrap() < 2, "{name}");
    }
}

/// The third layer of such a model takes keys and values from the cache of an earlier one.
#[test]
fn a_layer_that_reads_the_cache_of_another_does_not_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let run = |n_shared: u32| {
        let numbers = [
            ("block_count", 4),
            ("embedding_length_per_layer_input", 0),
            ("attention.key_length_swa", 32),
            ("attention.value_length_swa", 32),
            ("attention.shared_kv_layers", n_shared),
        ];
        let numbers = numbers.map(|(key, n)| (key, Number::Count(n)));
        architectures::write_with("gemma4", &numbers, &path).map_err(LlamaError::Part)?;
        let model = Model::load(Backend::init(), &path, &ModelParams::default())?;
        let mut layers = Layers::new(&model, PARAMS)?;
        let state = vec![0.1; 8 * model.n_embd()];
        let (mut next, tokens) = (state.clone(), [3; 8]);
        layers.run(&Part::new(Point::Before(2), Point::Before(3)), &tokens, &state, &mut next)
    };
    run(0).unwrap();
    let error = run(2).unwrap_err().to_string();
    assert!(error.contains("no single state stands before layer 2"), "{error}");
}
