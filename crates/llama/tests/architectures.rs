//! Parts of models of many architectures, one after the other, are the whole model.

use fixtures::architectures::{self, AT_ONCE, IN_TURN, Number};
use ggml::Type;
use llama::{
    Backend, Carried, Computed, Context, ContextParams, Layers, LlamaError, Model, ModelParams,
    Node, Observer, Outputs, Part, Point, Token,
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

/// Parts of a model as they were run one after the other.
#[derive(Debug, PartialEq)]
struct InParts {
    /// Layers that could be cut in their middle.
    n_middles: usize,
    /// Bytes that layers share.
    n_shared: usize,
}

/// Runs all parts of a model and compares each with the whole.
fn check(name: &str, numbers: &[(&str, u32)]) -> Result<InParts, LlamaError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let numbers: Vec<_> = numbers.iter().map(|(key, n)| (*key, Number::Count(*n))).collect();
    architectures::write_with(name, &numbers, &path).map_err(LlamaError::Part)?;
    let model = Model::load(Backend::init(), &path, &ModelParams::default())?;
    let tokens: Vec<Token> = (0..40).map(|i| (i * 79 + 3) % 120).collect();
    let mut context = Context::with_observer(&model, PARAMS, Named::default())?;
    context.decode(&tokens, Outputs::All)?;
    let named = std::mem::take(&mut context.observer_mut().0);
    let mut layers = Layers::new(&model, PARAMS)?;
    let mut state = vec![0.0; tokens.len() * layers.width(Point::Before(1))?];
    let (mut next, mut shared) = (state.clone(), vec![0; layers.n_shared()?]);
    let mut n_middles = 0;
    for layer in 0..model.n_layer() {
        let weight = format!("blk.{layer}.ffn_up.weight");
        let middle = Point::Middle { layer, weight: &weight };
        let is_cut = layers.check(middle, model.n_embd()).is_ok();
        let all = [Point::Before(layer), middle, Point::Before(layer + 1)];
        let stops = if is_cut { &all[..] } else { &[all[0], all[2]] };
        for ends in stops.windows(2) {
            let carried = Carried { state: &state, shared: &mut shared };
            layers.run(&Part::new(ends[0], ends[1]), &tokens, carried, &mut next)?;
            std::mem::swap(&mut state, &mut next);
            // Of another context that runs meanwhile, nothing is left.
            let mut other = vec![1; shared.len()];
            let carried = Carried { state: &vec![0.5; state.len()], shared: &mut other };
            layers.run(&Part::new(ends[0], ends[1]), &tokens, carried, &mut next)?;
        }
        n_middles += usize::from(is_cut);
        let expected = &named[&format!("l_out-{layer}")];
        assert!(expected.iter().all(|v| v.is_finite()), "{name}");
        assert!(state == *expected, "{name}: layer {layer}");
    }
    let part = Part::new(Point::Before(0), Point::Before(model.n_layer()));
    let carried = Carried { state: &[], shared: &mut shared };
    layers.run(&part, &tokens, carried, &mut next)?;
    assert!(state == next && state.iter().any(|v| *v != 0.0), "{name}: all layers");
    Ok(InParts { n_middles, n_shared: shared.len() })
}

#[test]
fn parts_of_every_architecture_are_the_whole() {
    for name in IN_TURN {
        let in_parts = check(name, &[]).unwrap();
        assert_eq!(in_parts, InParts { n_middles: 2, n_shared: 0 }, "{name}");
    }
    for name in AT_ONCE {
        let InParts { n_middles, n_shared } = check(name, &[]).unwrap();
        assert!(n_middles < 2 && (n_shared > 0) == (name == "gemma3n"), "{name}");
    }
}

/// The last layers of such models take keys and values from the cache of earlier ones.
#[test]
fn layers_that_share_keys_and_values_are_run_with_those() {
    let shared = |n_layers: u32, n_shared: u32| {
        let numbers = [
            ("block_count", n_layers),
            ("embedding_length_per_layer_input", 0),
            ("attention.key_length_swa", 32),
            ("attention.value_length_swa", 32),
            ("attention.shared_kv_layers", n_shared),
        ];
        check("gemma4", &numbers).unwrap().n_shared
    };
    assert_eq!(shared(4, 0), 0);
    // Keys and values of 256 positions (llama.cpp rounds up), in F16, of the second layer, which the third and the fourth read.
    assert_eq!(shared(4, 2), 2 * 256 * architectures::N_EMBD as usize * size_of::<u16>());
}

/// A part that reads what it was not given.
#[test]
fn shared_keys_and_values_of_another_size_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    architectures::write("gemma3n", &path).unwrap();
    let model = Model::load(Backend::init(), &path, &ModelParams::default()).unwrap();
    let mut layers = Layers::new(&model, PARAMS).unwrap();
    let state = vec![0.1; 8 * layers.width(Point::Before(1)).unwrap()];
    let mut run = |first: usize| {
        let part = Part::new(Point::Before(first), Point::Before(first + 1));
        layers.run(&part, &[3; 8], Carried::alone(&state), &mut state.clone())
    };
    run(0).unwrap();
    for first in [18, 20] {
        let error = run(first).unwrap_err().to_string();
        assert!(error.contains("layers share"), "{error}");
    }
}
