//! Tuning on small random models.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::coded;
use fixtures::architectures;
use fixtures::models::Model;
use format::Role;
use ggml::gguf::GgufFile;
use tempfile::TempDir;
use whole_model::{Listener, Transformer, TuneParams, Tuner, TuningError, families};

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

/// Hears of steps and stops after one of them, or never.
#[derive(Default)]
struct Steps {
    heard: Vec<usize>,
    last: Option<usize>,
}

impl Listener for Steps {
    fn step(&mut self, number: usize, loss: f64) {
        assert!(loss > 0.0);
        self.heard.push(number);
    }

    fn stops(&mut self) -> bool {
        self.last.is_some_and(|last| self.heard.last() == Some(&last))
    }
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
    let mut steps = Steps::default();
    let report = tuner.run(params, &fitted, &held_out, &mut steps).unwrap();
    assert!(report.after < 0.95 * report.before, "{report:?}");
    assert_eq!(steps.heard, (1..=40).collect::<Vec<_>>());
    // What comes back is what was measured, but for rounding.
    let tuned = tuner.into_parts();
    let again = Tuner::new(&file, tuned).unwrap().measure(&held_out, &mut steps).unwrap();
    assert!((again / report.after - 1.0).abs() < 0.02, "{again} {report:?}");
}

#[test]
fn codes_that_are_exact_do_not_diverge() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let tuner = Tuner::new(&file, BTreeMap::new()).unwrap();
    assert!(tuner.measure(&contexts(2, 1), &mut Steps::default()).unwrap().abs() < 1e-6);
}

#[test]
fn tuning_stops_when_asked_and_other_architectures_are_refused() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let mut tuner = Tuner::new(&file, coded(&file)).unwrap();
    let mut steps = Steps { last: Some(2), ..Steps::default() };
    let error =
        tuner.run(TuneParams::default(), &contexts(8, 1), &contexts(1, 2), &mut steps).unwrap_err();
    assert!(matches!(error, TuningError::Stopped));
    assert_eq!(steps.heard, [1, 2]);
    let arcee = model(&Model { has_gate: false, ..Model::default() });
    let error = Transformer::open(&GgufFile::open(&arcee.path).unwrap()).err().unwrap().to_string();
    assert!(error.contains("architecture 'arcee'"), "{error}");
}

#[test]
fn every_family_is_tuned() {
    for architecture in families() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.gguf");
        architectures::write(architecture, &path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let mut tuner = Tuner::new(&file, coded(&file)).unwrap();
        let params = TuneParams { steps: 12, contexts: 4, rate: 2e-2 };
        let (fitted, held_out) = (contexts(16, 1), contexts(4, 2));
        let report = tuner.run(params, &fitted, &held_out, &mut Steps::default()).unwrap();
        assert!(report.after < 0.97 * report.before, "{architecture}: {report:?}");
    }
}

/// Only the layers from the first coded one on are gone back through.
#[test]
fn a_part_of_the_layers_can_be_coded() {
    let fixture = model(&Model::default());
    let file = GgufFile::open(&fixture.path).unwrap();
    let second = coded(&file).into_iter().filter(|(id, _)| id.layer == 1 && id.role != Role::Up);
    let mut tuner = Tuner::new(&file, second.collect()).unwrap();
    let params = TuneParams { steps: 20, contexts: 4, rate: 1e-2 };
    let (fitted, held_out) = (contexts(16, 1), contexts(4, 2));
    let report = tuner.run(params, &fitted, &held_out, &mut Steps::default()).unwrap();
    assert!(report.after < 0.98 * report.before, "{report:?}");
}
