//! Tuning on a small random model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fixtures::models::Model;
use format::{MatrixId, Role};
use ggml::gguf::GgufFile;
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use sections::{SectionsCodec, SectionsParams, SectionsParts};
use tempfile::TempDir;
use whole_model::{Llama, TuneParams, Tuner, TuningError};

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
