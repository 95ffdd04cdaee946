//! Tuning and streaming on a small random model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use calibration::{PassageKind, Sampling};
use fixtures::models::Model;
use format::{InputId, InputRole};
use format::{MatrixId, Role};
use ggml::gguf::GgufFile;
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use sections::{SectionsCodec, SectionsParams, SectionsParts};
use tempfile::TempDir;
use whole_model::{LayerFfn, Llama, Stream, TuneParams, Tuner, TuningError, Watch};

struct Fixture {
    _folder: TempDir,
    path: PathBuf,
}

fn model(model: &Model) -> Fixture {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    Fixture { _folder: folder, path }
}

/// Every FFN matrix with two sections: far from exact.
fn coded(file: &GgufFile) -> BTreeMap<MatrixId, SectionsParts> {
    let params = SectionsParams { sections: 2, outlier_share: 0.01, ..SectionsParams::default() };
    let codec = SectionsCodec::new(params);
    let code = |tensor: MatrixId| {
        let info = file.require_tensor(&tensor.weight()).unwrap();
        let shape = info.matrix_shape().unwrap();
        let context =
            EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 1, progress: &() };
        let sidecars = codec.encode(&file.to_f32(info).unwrap(), shape, &context).unwrap();
        (tensor, SectionsParts::read(&sidecars, shape).unwrap())
    };
    let tensors = (0..2).flat_map(|layer| Role::ALL.map(|role| MatrixId { layer, role }));
    tensors.map(code).collect()
}

fn contexts(n: usize, seed: u32) -> Vec<Vec<u32>> {
    let token = |i: u32| 3 + (i * 7919 + seed * 31) % 250;
    (0..n as u32).map(|c| (0..24).map(|i| token(c * 24 + i)).collect()).collect()
}

#[test]
fn tuning_lowers_the_divergence_on_other_text() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let mut tuner = Tuner::new(&file, coded(&file)).unwrap();
    let (fitted, held_out) = (contexts(32, 1), contexts(6, 2));
    let params = TuneParams { steps: 40, contexts: 4, rate: 1e-2 };
    let mut heard = Vec::new();
    let report = tuner
        .run(params, &fitted, &held_out, &mut |step, _| {
            heard.push(step);
            false
        })
        .unwrap();
    assert!(report.after < 0.95 * report.before, "{report:?}");
    assert_eq!(heard, (1..=40).collect::<Vec<_>>());
    // What comes back is what was measured, but for rounding.
    let tuned = tuner.into_parts();
    let again = Tuner::new(&file, tuned).unwrap().measure(&held_out).unwrap();
    assert!((again / report.after - 1.0).abs() < 0.02, "{again} {report:?}");
}

#[test]
fn codes_that_are_exact_do_not_diverge() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let tuner = Tuner::new(&file, BTreeMap::new()).unwrap();
    assert!(tuner.measure(&contexts(2, 1)).unwrap().abs() < 1e-6);
}

#[test]
fn tuning_stops_when_asked_and_other_architectures_are_refused() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let mut tuner = Tuner::new(&file, coded(&file)).unwrap();
    let error = tuner
        .run(TuneParams::default(), &contexts(8, 1), &contexts(1, 2), &mut |step, _| step == 2)
        .unwrap_err();
    assert!(matches!(error, TuningError::Stopped));
    let arcee = model(&Model { has_gate: false, ..Model::default() });
    let error = Llama::load(&GgufFile::open(&arcee.path).unwrap()).err().unwrap().to_string();
    assert!(error.contains("architecture 'arcee'"), "{error}");
}

const ALL: [MatrixId; 6] = {
    const fn of(layer: usize, role: Role) -> MatrixId {
        MatrixId { layer, role }
    }
    use Role::{Down, Gate, Up};
    [of(0, Gate), of(0, Up), of(0, Down), of(1, Gate), of(1, Up), of(1, Down)]
};

/// `n` contexts of which every fifth is held out, before the first layer.
fn stream(file: &GgufFile, n: usize) -> Stream {
    let contexts = contexts(n, 3);
    let kind = |i| if i % 5 == 2 { PassageKind::HeldOut } else { PassageKind::Fitted };
    let all = contexts.iter().enumerate().map(|(i, c)| (kind(i), c.as_slice()));
    Stream::new(Llama::load(file).unwrap(), all).unwrap()
}

fn watch(max_moment_dim: usize, tensors: &[MatrixId]) -> Watch<'_> {
    let sampling = Sampling::new((96, 96), (24, 24), 0);
    Watch { max_moment_dim, sampling, damping: 1e-3, tensors, mul_mat: &ReferenceMatMul }
}

fn uncoded(file: &GgufFile, layer: usize) -> LayerFfn {
    LayerFfn { source: Llama::ffn(file, layer).unwrap(), coded: None }
}

/// The layer with `dense` in place of some matrices.
fn replaced<'a>(
    file: &GgufFile,
    layer: usize,
    dense: impl IntoIterator<Item = (Role, &'a [f32])>,
) -> LayerFfn {
    let source = Llama::ffn(file, layer).unwrap();
    let mut coded = source.clone();
    for (target, dense) in dense {
        coded.replace(target, dense.to_vec()).unwrap();
    }
    LayerFfn { source, coded: Some(coded) }
}

#[test]
fn weighed_tokens_count_by_what_they_cost() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let read = |n| Llama::ffn(&file, n);
    let ffn = [0, 1].map(|n| uncoded(&file, n));
    let (mut weighed, alike) = (stream(&file, 9), stream(&file, 9));
    let mut n_heard = 0;
    let mut count = || {
        n_heard += 1;
        false
    };
    weighed.weigh(&read, &mut count).unwrap();
    assert_eq!((n_heard, weighed.n_weighing_steps()), (2 * 2 * 9, 2 * 2 * 9));
    let seen =
        |mut stream: Stream| stream.watch(&ffn, &watch(1024, &ALL), &|| false).unwrap().inputs;
    for (input, alike) in seen(alike) {
        let weighed = &seen(weighed.clone())[&input];
        let (a, b) = (weighed.second_moment().unwrap(), alike.second_moment().unwrap());
        let size = |m: &[f32]| m.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        // The weights' mean is 1: other directions count, but about as much in all.
        assert!(size(&difference) > 0.02 * size(&b), "{input}");
        assert!((0.5..2.0).contains(&(size(&a) / size(&b))), "{input}");
    }
    let stopped = stream(&file, 2).weigh(&read, &mut || true);
    assert!(matches!(stopped, Err(TuningError::Stopped)));
}

#[test]
fn watching_layer_by_layer_sees_what_watching_at_once_sees() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let ffn = [0, 1].map(|n| uncoded(&file, n));
    let go = || false;
    let at_once = stream(&file, 5).watch(&ffn, &watch(64, &ALL), &go).unwrap();
    assert!(at_once.inputs.len() == 4 && at_once.targets.is_empty());
    let mut stream = stream(&file, 5);
    stream.advance(&ffn[0], &go).unwrap();
    assert_eq!(stream.layer(), 1);
    let later = stream.watch(&ffn[1..], &watch(64, &ALL), &go).unwrap();
    assert_eq!(later.inputs.len(), 2);
    for (input, data) in &later.inputs {
        assert_eq!(data, &at_once.inputs[input], "{input}");
    }
    let down = &at_once.inputs[&InputId { layer: 0, role: InputRole::FfnDown }];
    assert_eq!((down.fitted_samples().unwrap().len(), down.holdout.len()), (96, 24));
    let stopped = stream.watch(&ffn[1..], &watch(64, &ALL), &|| true);
    assert!(matches!(stopped, Err(TuningError::Stopped)));
}

#[test]
fn only_inputs_of_matrices_to_be_coded_are_watched() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let seen = |tensors: &[MatrixId]| -> Vec<InputRole> {
        let seen = stream(&file, 5).watch(&[uncoded(&file, 0)], &watch(64, tensors), &|| false);
        seen.unwrap().inputs.keys().map(|input| input.role).collect()
    };
    assert_eq!(seen(&ALL[1..2]), [InputRole::FfnIn]);
    assert_eq!(seen(&ALL[2..3]), [InputRole::FfnDown]);
    assert!(seen(&ALL[3..]).is_empty());
}

/// Contexts after layer 0, whose matrices went a fifth of the way to a coarse code.
fn disturbed(file: &GgufFile, n: usize) -> Stream {
    let coded = coded(file).into_iter().filter(|(tensor, _)| tensor.layer == 0);
    let mix = |(tensor, parts): (MatrixId, SectionsParts)| {
        let weights = file.to_f32(file.require_tensor(&tensor.weight()).unwrap()).unwrap();
        let mixed = weights.iter().zip(parts.decode()).map(|(w, c)| 0.8 * w + 0.2 * c);
        (tensor.role, mixed.collect::<Vec<f32>>())
    };
    let coded: Vec<_> = coded.map(mix).collect();
    let dense = coded.iter().map(|(target, dense)| (*target, dense.as_slice()));
    let mut stream = stream(file, n);
    stream.advance(&replaced(file, 0, dense), &|| false).unwrap();
    stream
}

#[test]
fn targets_bring_the_hidden_states_back_to_where_they_were() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let go = || false;
    let mut stream = disturbed(&file, 150);
    let before = stream.distance().unwrap();
    assert!(before > 1e-3, "{before}");
    let ffn = [uncoded(&file, 1)];
    let targets = stream.watch(&ffn, &watch(256, &ALL), &go).unwrap().targets;
    assert_eq!(targets.keys().copied().collect::<Vec<_>>(), ALL[3..]);
    let after = |names: &[MatrixId]| {
        let met = names.iter().map(|t| (t.role, targets[t].as_slice()));
        let mut stream = stream.clone();
        stream.advance(&replaced(&file, 1, met), &go).unwrap();
        stream.distance().unwrap()
    };
    let (none, gate_up, all) = (after(&[]), after(&ALL[3..5]), after(&ALL[3..]));
    assert!(all < 0.8 * none && all < gate_up, "{none} {gate_up} {all}");
    // Those of gate and up do not depend on whether down is watched too.
    let only = stream.watch(&ffn, &watch(256, &ALL[3..5]), &go).unwrap().targets;
    assert!(only.len() == 2 && only.iter().all(|(t, target)| *target == targets[t]));
}

#[test]
fn there_are_no_targets_where_they_cannot_be_told_or_would_not_help() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let targets = |n, max_moment_dim| {
        let watch = watch(max_moment_dim, &ALL);
        let seen = disturbed(&file, n).watch(&[uncoded(&file, 1)], &watch, &|| false);
        seen.unwrap().targets.len()
    };
    assert_eq!(targets(150, 256), 3);
    // no second moments
    assert_eq!(targets(150, 8), 0);
    // fewer tokens than inputs: what was learned of them does not hold for others
    assert_eq!(targets(5, 256), 0);
}
