//! Text on its way through a small random model, as it was and with other matrices.

use std::path::Path;

use calibration::PassageKind;
use fixtures::{architectures, models};
use format::{InputId, InputRole, MatrixId, ModelMap, Role};
use ggml::Type;
use ggml::gguf::GgufFile;
use llama::{Backend, Carried, ContextParams, Layers, Model, ModelParams, Part, Point, StandIn};
use numerics::TiledMatMul;
use tempfile::TempDir;
use whole_model::{
    Decoded, KeptShape, KeptStates, Stream, TokenWeights, Transformer, TuningError, Watch,
};

struct Fixture {
    folder: TempDir,
    file: GgufFile,
    map: ModelMap,
    model: Model,
}

fn fixture(model: &models::Model) -> Fixture {
    fixture_of(|path| model.write(path).unwrap())
}

fn fixture_of(write: impl FnOnce(&Path)) -> Fixture {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path);
    let file = GgufFile::open(&path).unwrap();
    let map = ModelMap::of(file.tensors().iter().map(|t| (t.name(), t.dims())));
    let model = Model::load(Backend::init(), &path, &ModelParams::default()).unwrap();
    Fixture { folder, file, map, model }
}

fn small() -> Fixture {
    fixture(&models::Model::default())
}

const ALL: [MatrixId; 6] = {
    const fn of(layer: usize, role: Role) -> MatrixId {
        MatrixId { layer, role }
    }
    use Role::{Down, Gate, Up};
    [of(0, Gate), of(0, Up), of(0, Down), of(1, Gate), of(1, Up), of(1, Down)]
};

fn contexts(n: usize) -> Vec<Vec<u32>> {
    let token = |i: u32| 3 + (i * 7919 + 93) % 250;
    (0..n as u32).map(|c| (0..24).map(|i| token(c * 24 + i)).collect()).collect()
}

impl Fixture {
    /// `n` contexts of which every fifth is held out, before the first layer.
    fn stream(&self, n: usize) -> Stream<'_> {
        let kind = |i| if i % 5 == 2 { PassageKind::HeldOut } else { PassageKind::Fitted };
        let signed = |c: Vec<u32>| c.into_iter().map(u32::cast_signed).collect();
        let all = contexts(n).into_iter().enumerate().map(|(i, c)| (kind(i), signed(c)));
        let model = (&self.model, &self.file, &self.map);
        Stream::new(model, all, self.folder.path(), 1).unwrap()
    }

    fn weights(&self, id: MatrixId) -> Vec<f32> {
        self.file.to_f32(self.file.require_tensor(&id.weight()).unwrap()).unwrap()
    }

    /// Contexts behind layer 0, whose matrices were disturbed.
    fn disturbed(&self, n: usize) -> Stream<'_> {
        let mut stream = self.stream(n);
        let disturb = |id: MatrixId| {
            let other = self.weights(MatrixId { layer: 1, ..id });
            let mixed = self.weights(id).iter().zip(other).map(|(w, o)| w + 0.15 * o).collect();
            (id, mixed)
        };
        let own = self.map.matrices().map(|m| m.id).filter(|id| id.layer == 0);
        stream.advance(&own.map(disturb).collect(), &|| false).unwrap();
        stream
    }
}

fn watch(max_moment_dim: usize, tensors: &[MatrixId]) -> Watch<'_> {
    Watch {
        max_moment_dim,
        n_fitted: 96,
        held_out: (24, 24),
        seed: 0,
        damping: 1e-3,
        tensors,
        mul_mat: &TiledMatMul,
    }
}

fn none(n: usize) -> Vec<Decoded> {
    vec![Decoded::new(); n]
}

#[test]
fn weighed_tokens_count_by_what_they_cost() {
    let fixture = small();
    let model = Transformer::open(&fixture.file).unwrap();
    let mut n_heard = 0;
    let mut count = || {
        n_heard += 1;
        false
    };
    let weights = TokenWeights::curvature(&model, &contexts(9), &mut count).unwrap();
    assert_eq!((n_heard, TokenWeights::n_steps(&model, 9)), (2 * 2 * 9, 2 * 2 * 9));
    let (mut weighed, mut alike) = (fixture.stream(9), fixture.stream(9));
    weighed.weigh(weights);
    let seen = |stream: &mut Stream<'_>| {
        stream.watch(&none(2), &watch(1024, &ALL), &|| false).unwrap().inputs
    };
    let (weighed, alike) = (seen(&mut weighed), seen(&mut alike));
    assert_eq!(alike.len(), 4);
    for (input, alike) in alike {
        let (a, b) = (weighed[&input].second_moment().unwrap(), alike.second_moment().unwrap());
        let size = |m: &[f32]| m.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        // The weights' mean is 1: other directions count, but about as much in all.
        assert!(size(&difference) > 0.02 * size(&b), "{input}");
        assert!((0.5..2.0).contains(&(size(&a) / size(&b))), "{input}");
    }
    let stopped = TokenWeights::curvature(&model, &contexts(2), &mut || true);
    assert!(matches!(stopped, Err(TuningError::Stopped)));
}

#[test]
fn watching_layer_by_layer_sees_what_watching_at_once_sees() {
    let fixture = small();
    let go = || false;
    let at_once = fixture.stream(5).watch(&none(2), &watch(64, &ALL), &go).unwrap();
    assert!(at_once.inputs.len() == 4 && at_once.targets.is_empty());
    let mut stream = fixture.stream(5);
    stream.advance(&Decoded::new(), &go).unwrap();
    assert_eq!(stream.layer(), 1);
    let later = stream.watch(&none(1), &watch(64, &ALL), &go).unwrap();
    assert_eq!(later.inputs.len(), 2);
    for (input, data) in &later.inputs {
        assert_eq!(data, &at_once.inputs[input], "{input}");
    }
    let down = &at_once.inputs[&InputId { layer: 0, role: InputRole::FfnDown }];
    assert_eq!((down.fitted_samples().unwrap().len(), down.holdout.len()), (96, 24));
    let stopped = fixture.stream(2).watch(&none(1), &watch(64, &ALL), &|| true);
    assert!(matches!(stopped, Err(TuningError::Stopped)));
}

/// With the states of an earlier run at hand the source does not run again: what was changed there is taken for what the
/// source computes.
#[test]
fn kept_states_take_the_place_of_the_source() {
    let fixture = small();
    let path = fixture.folder.path().join("kept.states");
    let (n, go) = (20, || false);
    let seen = |kept: bool| {
        let mut stream = fixture.stream(n);
        if kept {
            let shape = KeptShape::of(&fixture.model, n, 24).unwrap();
            stream.keep_source(KeptStates::open(&path, &[1; 32], shape).unwrap());
        }
        let own = fixture.map.matrices().map(|m| m.id).filter(|id| id.layer == 0);
        let even = |id: MatrixId| {
            let shape = fixture.map.matrix(id).unwrap().shape;
            (id, vec![0.01; shape.n_weights()])
        };
        stream.advance(&own.map(even).collect(), &go).unwrap();
        let seen = stream.watch(&none(1), &watch(256, &ALL), &go).unwrap();
        (seen.inputs, seen.targets, stream.distance())
    };
    let without = seen(false);
    assert!(!without.1.is_empty());
    for _ in 0..2 {
        assert!(seen(true) == without);
    }
    // The last of the five places, the one behind the last layer, doubled.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - bytes.len() / 5;
    for value in bytes[at / 4 * 4..].chunks_mut(4) {
        let doubled = 2.0 * f32::from_le_bytes(value.try_into().unwrap());
        value.copy_from_slice(&doubled.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let changed = seen(true);
    assert!(changed.1 != without.1, "the targets follow what is kept");
}

#[test]
fn only_inputs_of_matrices_to_be_coded_are_watched() {
    let fixture = small();
    let seen = |tensors: &[MatrixId]| -> Vec<InputRole> {
        let seen = fixture.stream(5).watch(&none(1), &watch(64, tensors), &|| false);
        seen.unwrap().inputs.keys().map(|input| input.role).collect()
    };
    assert_eq!(seen(&ALL[1..2]), [InputRole::FfnIn]);
    assert_eq!(seen(&ALL[2..3]), [InputRole::FfnDown]);
    assert!(seen(&ALL[3..]).is_empty());
}

/// Targets of layer 1, and the distance behind it with all, with those of some and with none.
fn distances(fixture: &Fixture, some: &[MatrixId]) -> [f64; 3] {
    let go = || false;
    let mut stream = fixture.disturbed(150);
    let before = stream.distance();
    assert!(before > 1e-3, "{before}");
    let targets = stream.watch(&none(1), &watch(256, &ALL), &go).unwrap().targets;
    let all: Vec<MatrixId> =
        fixture.map.matrices().map(|m| m.id).filter(|id| id.layer == 1).collect();
    assert_eq!(targets.keys().copied().collect::<Vec<_>>(), all);
    // Those of the first site do not depend on whether the second is watched too.
    let mut again = fixture.disturbed(150);
    let only = again.watch(&none(1), &watch(256, some), &go).unwrap().targets;
    assert!(only.len() == some.len() && only.iter().all(|(t, target)| *target == targets[t]));
    [&all[..], some, &[]].map(|names| {
        let met: Decoded = names.iter().map(|id| (*id, targets[id].clone())).collect();
        let mut stream = fixture.disturbed(150);
        stream.advance(&met, &go).unwrap();
        stream.distance()
    })
}

#[test]
fn targets_bring_the_hidden_states_back_to_where_they_were() {
    let [all, gate_up, none] = distances(&small(), &ALL[3..5]);
    assert!(all < 0.8 * none && all < gate_up, "{none} {gate_up} {all}");
    // arcee: no ffn_gate.
    let arcee = fixture(&models::Model { has_gate: false, ..Default::default() });
    let [all, up, none] = distances(&arcee, &ALL[4..5]);
    assert!(all < 0.8 * none && all < up, "{none} {up} {all}");
}

/// Norms behind the FFN, several states side by side, attention beside it, scaled residuals, one matrix for gate and up, none
/// for the gate.
#[test]
fn targets_help_whatever_the_architecture() {
    for name in [
        "qwen2",
        "gemma2",
        "gemma3n",
        "olmo2",
        "phi2",
        "command-r",
        "granite",
        "phi3",
        "starcoder2",
        "lfm2",
    ] {
        let fixture = fixture_of(|path| architectures::write(name, path).unwrap());
        let up = MatrixId { layer: 1, role: Role::Up };
        let gate = MatrixId { layer: 1, role: Role::Gate };
        let some: Vec<MatrixId> =
            [gate, up].into_iter().filter(|id| fixture.map.matrix(*id).is_some()).collect();
        let [all, gate_up, none] = distances(&fixture, &some);
        println!("{name}: {none} {gate_up} {all}");
        assert!(all < none, "{name}: {none} {gate_up} {all}");
    }
}

/// The last layers of gemma3n read keys and values of an earlier one: those of their own side, in every context.
#[test]
fn shared_keys_and_values_are_those_of_the_context_and_of_the_side() {
    let fixture = fixture_of(|path| architectures::write("gemma3n", path).unwrap());
    let n_layers = fixture.model.n_layer();
    let down = MatrixId { layer: 0, role: Role::Down };
    let other: Vec<f32> = fixture.weights(down).iter().map(|w| -w).collect();
    let mut stream = fixture.stream(4);
    stream.advance(&Decoded::from([(down, other.clone())]), &|| false).unwrap();
    let first = stream.distance();
    (1..n_layers).for_each(|_| stream.advance(&Decoded::new(), &|| false).unwrap());

    // The same without a cut.
    let params = ContextParams { n_ctx: 24, n_batch: 24, n_threads: 1, cache_type: Type::F16 };
    let mut layers = Layers::new(&fixture.model, params).unwrap();
    let d_in = fixture.map.matrix(down).unwrap().shape.d_in;
    let stand_ins = [StandIn::new(&down.weight(), &other, d_in, Type::Q8_0).unwrap()];
    let (width, mut shared) =
        (layers.width(Point::Before(1)).unwrap(), vec![0; layers.n_shared().unwrap()]);
    let (mut difference, mut size) = (0.0, 0.0);
    for context in contexts(4) {
        let tokens: Vec<i32> = context.into_iter().map(u32::cast_signed).collect();
        let mut run = |stand_ins| {
            let part = Part::new(Point::Before(0), Point::Before(n_layers));
            let mut state = vec![0.0; width * tokens.len()];
            let carried = Carried { state: &[], shared: &mut shared };
            layers.run(&Part { stand_ins, ..part }, &tokens, carried, &mut state).unwrap();
            state
        };
        for (a, b) in run(&[]).iter().zip(run(&stand_ins)) {
            difference += f64::from(a - b).powi(2);
            size += f64::from(*a).powi(2);
        }
    }
    assert_eq!(stream.distance(), difference / size);
    let refused = KeptShape::of(&fixture.model, 4, 24).unwrap_err().to_string();
    assert!(refused.contains("share keys and values"), "{refused}");
    assert!(first > 1e-3 && stream.distance() > 1e-3);
}

#[test]
fn there_are_no_targets_where_they_cannot_be_told() {
    let fixture = small();
    let targets = |max_moment_dim| {
        let watch = Watch { n_fitted: 2880, ..watch(max_moment_dim, &ALL) };
        let seen = fixture.disturbed(150).watch(&none(1), &watch, &|| false);
        seen.unwrap().targets.len()
    };
    assert_eq!(targets(256), 3);
    // Without second moments of gate's and up's inputs, only what is added to the hidden state can be told.
    assert_eq!(targets(8), 1);
}

/// Without a second moment of all inputs, most of what it would bring.
#[test]
fn inputs_too_long_for_a_moment_make_up_for_errors_span_by_span() {
    let fixture = small();
    let (down, go) = (ALL[5], || false);
    let behind = |max_moment_dim: Option<usize>| {
        let mut stream = fixture.disturbed(150);
        let targets = match max_moment_dim {
            None => Decoded::new(),
            Some(max) => {
                let watch = Watch { n_fitted: 2880, ..watch(max, std::slice::from_ref(&down)) };
                stream.watch(&none(1), &watch, &go).unwrap().targets
            }
        };
        assert_eq!(targets.len(), usize::from(max_moment_dim.is_some()));
        stream.advance(&targets, &go).unwrap();
        stream.distance()
    };
    let [nothing, whole, spans] = [None, Some(256), Some(64)].map(behind);
    assert!(spans < nothing - 0.6 * (nothing - whole), "{nothing} {whole} {spans}");
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let fixture = small();
    whole_model::check(&fixture.model, &fixture.map, &[3, 287]).unwrap();
    let error = whole_model::check(&fixture.model, &fixture.map, &[3, 288]).unwrap_err();
    assert!(matches!(error, TuningError::Token { token: 288, n_vocab: 288 }), "{error}");
}
