//! Calibrations of the small model, made up.

use std::collections::BTreeMap;
use std::fs;

use builder::Source;
use calibration::{
    CalibratedInput, Experts, Fitted, MomentScratch, Provenance, Samples, SecondMoment, TextId,
    TextSketch,
};
use format::{InputId, InputRole};
use numerics::ReferenceMatMul;

use super::Fixture;

/// Tokens per context.
const N_CTX: usize = 10;

/// How a calibration is made up.
#[derive(Clone, Copy)]
pub struct Made {
    pub n_fitted: usize,
    pub n_held_out: usize,
    /// 0 for a file of the text alone.
    pub n_layers: usize,
    pub samples_only: bool,
    /// Whether the file says which tokens it was made from; the activations are made up in any case.
    pub with_tokens: bool,
    /// The smallest of those tokens.
    pub first_token: i32,
    /// Whether the model is known by its hash, which is read for that.
    pub is_hashed: bool,
    pub seed: u64,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            n_fitted: 600,
            n_held_out: 200,
            n_layers: 2,
            samples_only: false,
            with_tokens: false,
            first_token: 3,
            is_hashed: true,
            seed: 1,
        }
    }
}

/// Inputs with common parts, of which a tenth differs much in size; [d, n].
fn activations(d: usize, n: usize, input: u64, seed: u64) -> Vec<f32> {
    let random = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let (mut of_input, mut of_token) = (input, seed);
    let mix: Vec<f32> = (0..4 * d).map(|_| random(&mut of_input)).collect();
    let mut rows = Vec::new();
    for t in 0..n {
        let common: Vec<f32> = (0..4).map(|_| random(&mut of_token)).collect();
        let size = if t % 10 == 3 { 4.0 } else { 1.0 };
        for i in 0..d {
            let shared: f32 = (0..4).map(|j| common[j] * mix[4 * i + j]).sum();
            rows.push(size * (shared + 0.3 * random(&mut of_token)) * (1.0 + (i % 5) as f32));
        }
    }
    rows
}

fn samples(d: usize, rows: &[f32]) -> Samples {
    let mut samples = Samples::new(d);
    rows.chunks(d).for_each(|x| samples.push(x));
    samples
}

fn moment(d: usize, rows: &[f32]) -> SecondMoment {
    let mut moment = SecondMoment::new(d);
    moment.add(rows, &ReferenceMatMul, &mut MomentScratch::default());
    moment
}

/// Writes a calibration of `model.gguf`.
pub fn write_calibration(fixture: &Fixture, name: &str, made: Made) {
    let path = fixture.path("model.gguf");
    let mut file = fs::File::open(&path).unwrap();
    let sha256 = match made.is_hashed {
        true => program::files::sha256(&mut file, |_| Ok(())).unwrap(),
        false => "ab".repeat(32),
    };
    let model = Source::open(&path).unwrap().model_id(sha256).unwrap();
    let mut inputs = BTreeMap::new();
    for layer in 0..made.n_layers {
        for (role, d) in [(InputRole::FfnIn, model.n_embd), (InputRole::FfnDown, model.n_ff)] {
            let (d, id) = (d as usize, 10 * layer as u64 + role as u64);
            let fitted = activations(d, made.n_fitted, id, made.seed);
            let held_out = activations(d, made.n_held_out, id, made.seed + 1000);
            let input = CalibratedInput {
                experts: Experts::Unknown,
                fitted: if made.samples_only {
                    Fitted::Samples(samples(d, &fitted))
                } else {
                    Fitted::Moment(moment(d, &fitted))
                },
                holdout_moment: (!made.samples_only).then(|| moment(d, &held_out)),
                holdout: samples(d, &held_out),
            };
            inputs.insert(InputId { layer, role }, input);
        }
    }
    let provenance = Provenance {
        model,
        texts: vec![TextId { name: "text.txt".to_owned(), sha256: "ab".repeat(32) }],
        sketch: TextSketch::default(),
        n_fitted: made.n_fitted as u64,
        n_held_out: made.n_held_out as u64,
        n_ctx: N_CTX as u32,
        tokens: tokens(made),
        seed: made.seed,
        tool: "test".to_owned(),
        llama_cpp: "test".to_owned(),
    };
    let out = fs::File::create(fixture.path(name)).unwrap();
    calibration::write(std::io::BufWriter::new(out), &provenance, &inputs).unwrap();
}

/// Bytes in no order, in contexts of which every tenth is held out.
fn tokens(made: Made) -> Vec<i32> {
    let n = made.n_fitted + made.n_held_out;
    (0..n as i32 * i32::from(made.with_tokens))
        .map(|i| made.first_token + (i * 7919 + i / 7) % 250)
        .collect()
}
