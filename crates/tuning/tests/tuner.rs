//! Tuning and streaming on a small random model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use calibration::{FfnInput, InputKind, PassageKind, Sampling};
use codec::{Codec, EncodeContext, FfnTensor, ReferenceMatMul, Target};
use ggml::gguf::GgufFile;
use statecells::sections::{SectionsCodec, SectionsParams, SectionsParts};
use tempfile::TempDir;
use test_models::Model;
use tuning::{Llama, Stream, TuneParams, Tuner, TuningError, Watch};

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
fn coded(file: &GgufFile) -> BTreeMap<FfnTensor, SectionsParts> {
    let params = SectionsParams { sections: 2, outlier_share: 0.01, ..SectionsParams::default() };
    let codec = SectionsCodec::new(params);
    let code = |tensor: FfnTensor| {
        let info = file.require_tensor(&tensor.weight()).unwrap();
        let shape = info.matrix_shape().unwrap();
        let context =
            EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 1, progress: &() };
        let sidecars = codec.encode(&file.to_f32(info).unwrap(), shape, &context).unwrap();
        (tensor, SectionsParts::read(&sidecars, shape).unwrap())
    };
    let tensors = (0..2).flat_map(|layer| Target::ALL.map(|target| FfnTensor { layer, target }));
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

#[test]
fn watching_layer_by_layer_sees_what_watching_at_once_sees() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let contexts = contexts(5, 3);
    let kind = |i| if i == 2 { PassageKind::HeldOut } else { PassageKind::Fitted };
    let start = || {
        let all = contexts.iter().enumerate().map(|(i, c)| (kind(i), c.as_slice()));
        Stream::new(Llama::load(&file).unwrap(), all).unwrap()
    };
    let ffn = [0, 1].map(|n| Llama::ffn(&file, n).unwrap());
    let watch = Watch {
        max_moment_dim: 64,
        sampling: Sampling::new((96, 96), (24, 24), 0),
        mul_mat: &ReferenceMatMul,
    };
    let at_once = start().watch(&ffn, &watch, &|| false).unwrap();
    assert_eq!(at_once.len(), 4);
    let mut stream = start();
    stream.advance(&ffn[0], &|| false).unwrap();
    assert_eq!(stream.layer(), 1);
    let later = stream.watch(&ffn[1..], &watch, &|| false).unwrap();
    for (input, data) in &later {
        assert_eq!(data, &at_once[input], "{input}");
    }
    let down = &at_once[&FfnInput { layer: 0, kind: InputKind::Down }];
    assert_eq!((down.fitted_samples().unwrap().len(), down.holdout.len()), (96, 24));
    assert!(matches!(stream.watch(&ffn[1..], &watch, &|| true), Err(TuningError::Stopped)));
}
