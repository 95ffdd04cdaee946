//! Tuning FFN by FFN on small random models of several architectures.

mod common;

use std::collections::BTreeMap;

use calibration::PassageKind;
use fixtures::architectures;
use format::{MatrixId, ModelMap};
use ggml::gguf::GgufFile;
use llama::{Backend, Model, ModelParams};
use sections::SectionsParts;
use tempfile::TempDir;
use whole_model::{Decoded, FfnErrors, FfnEvent, FfnTuner, Stream, TuneParams, TuningError};

struct Fixture {
    folder: TempDir,
    file: GgufFile,
    map: ModelMap,
    model: Model,
}

type Parts = BTreeMap<MatrixId, SectionsParts>;

impl Fixture {
    fn new(architecture: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.gguf");
        architectures::write(architecture, &path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let map = ModelMap::of(file.tensors().iter().map(|t| (t.name(), t.dims())));
        let model = Model::load(Backend::init(), &path, &ModelParams::default()).unwrap();
        Self { folder, file, map, model }
    }

    fn whole(&self) -> (&Model, &GgufFile, &ModelMap) {
        (&self.model, &self.file, &self.map)
    }

    fn stream(&self, seed: i32) -> Stream<'_> {
        let token = |i: i32| 3 + (i * 7919 + 93 * seed) % 250;
        let context = |c: i32| {
            let kind = if c % 5 == 2 { PassageKind::HeldOut } else { PassageKind::Fitted };
            (kind, (0..24).map(|i| token(c * 24 + i)).collect())
        };
        Stream::new(self.whole(), (0..40).map(context), self.folder.path(), 1).unwrap()
    }

    /// How far the hidden states are behind the last layer, on other text.
    fn distance(&self, parts: &Parts) -> f64 {
        let mut stream = self.stream(2);
        for layer in 0..2 {
            let own = parts.iter().filter(|(id, _)| id.layer == layer);
            let decoded: Decoded = own.map(|(id, parts)| (*id, parts.decode())).collect();
            stream.advance(&decoded, &|| false).unwrap();
        }
        stream.distance()
    }
}

const PARAMS: TuneParams = TuneParams { steps: 30, contexts: 4, rate: 1e-2 };

/// Norms behind the FFN, attention beside it, scaled residuals, one matrix for gate and up, none for the gate; SiLU, GELU
/// and the square of ReLU.
#[test]
fn tuned_ffns_bring_the_hidden_states_nearer_whatever_the_architecture() {
    for name in ["qwen2", "gemma2", "olmo2", "phi2", "granite", "phi3", "starcoder2", "nemotron"] {
        let fixture = Fixture::new(name);
        let coded = common::coded(&fixture.file);
        let tuner = FfnTuner::new(fixture.whole(), PARAMS).unwrap();
        let (mut steps, mut layers) = (0, Vec::new());
        let mut told = |event| match event {
            FfnEvent::Step => steps += 1,
            FfnEvent::Layer(layer, errors) => layers.push((layer, errors)),
        };
        let tuned = tuner.run(&mut fixture.stream(1), coded.clone(), &mut told, &|| false).unwrap();
        assert_eq!((steps, layers.len()), (60, 2));
        for (layer, FfnErrors { before, after }) in &layers {
            assert!(after < before, "{name}, layer {layer}: {before} {after}");
        }
        let [before, after] = [&coded, &tuned].map(|parts| fixture.distance(parts));
        println!("{name}: {before} {after}");
        assert!(after < 0.95 * before, "{name}: {before} {after}");
    }
}

#[test]
fn codes_stay_and_sizes_with_them() {
    let fixture = Fixture::new("qwen2");
    let coded = common::coded(&fixture.file);
    let tuner = FfnTuner::new(fixture.whole(), PARAMS).unwrap();
    // Layer 1 alone: layer 0 stays as it is in the source.
    let second: Parts = coded.into_iter().filter(|(id, _)| id.layer == 1).collect();
    let tuned = tuner.run(&mut fixture.stream(1), second.clone(), &mut |_| {}, &|| false).unwrap();
    assert_eq!(tuned.len(), 3);
    for (id, parts) in &tuned {
        let [now, then] = [parts, &second[id]].map(|p| p.clone().to_sidecars().unwrap());
        let sizes = |s: &[format::Sidecar]| s.iter().map(|s| s.data.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&now), sizes(&then));
        assert_ne!(now, then);
        assert_eq!(parts.winners, second[id].winners);
    }
}

#[test]
fn tuning_stops_when_asked() {
    let fixture = Fixture::new("qwen2");
    let tuner = FfnTuner::new(fixture.whole(), PARAMS).unwrap();
    let steps = std::cell::Cell::new(0);
    let mut told = |_| steps.set(steps.get() + 1);
    let stop = || steps.get() == 3;
    let result = tuner.run(&mut fixture.stream(1), common::coded(&fixture.file), &mut told, &stop);
    assert!(matches!(result, Err(TuningError::Stopped)));
    assert_eq!(steps.get(), 3);
}
