//! Coded models through llama.cpp's loader and graph. A sound model of any family gets codes for one to three of its tensors,
//! sound or damaged ones: the model is refused or computes. A code for a weight that nobody may code is always refused.
#![no_main]

use std::path::Path;

use fixtures::hostile::families::Family;
use fixtures::hostile::gguf::{Gguf, Tensor, Value};
use ggml::Type;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use llama::{Backend, Context, ContextParams, Model, ModelParams, Outputs, Override};
use sidecars::Host;

#[path = "file.rs"]
mod file;
#[allow(dead_code, reason = "what only the target `hook` needs")]
#[path = "hook/sidecars.rs"]
mod sidecars;

/// Some of the vocabulary: the first token and two bytes.
const TOKENS: [i32; 3] = [1, 100, 120];

fuzz_target!(|data: &[u8]| {
    // Running out of bytes only ends a case early.
    let _ = case(&mut Unstructured::new(data));
});

fn case(u: &mut Unstructured<'_>) -> Result<()> {
    let family = *u.choose(&Family::ALL)?;
    let mut file = family.model();
    file.set("statecells.version", Value::u32(1));
    let mut misplaced = false;
    for _ in 0..u.int_in_range(1..=3)? {
        misplaced |= code(u, &mut file)?;
    }
    let mut overrides = Vec::new();
    for key in ["statecells.enable", "seeddelta.enable", "statecells.check"] {
        if !u.ratio(1, 8)? {
            overrides.push((key.to_owned(), Override::Bool(true)));
        }
    }
    if u.ratio(1, 8)? {
        overrides.push(("statecells.gap".to_owned(), Override::Float(u.arbitrary::<f32>()?.into())));
    }
    let ran = run(file::of(&file.bytes()), overrides);
    assert!(!(ran && misplaced), "{family:?} runs with a code where none may be");
    Ok(())
}

/// Puts a code on a tensor of the file, rarely on one that is not there. True if no weight may be coded there.
fn code(u: &mut Unstructured<'_>, file: &mut Gguf) -> Result<bool> {
    let at = u.int_in_range(0..=file.tensors.len() - 1)?;
    let dense = file.tensors[at].clone();
    let mut name = String::from_utf8_lossy(&dense.name).into_owned();
    if u.ratio(1, 16)? {
        name = (*u.choose(&["blk.7.ffn_up.weight", "blk.0.ffn_up.7.weight", "blk.0.weight", "ffn_up", ""])?).to_owned();
    }
    let n_rows = dense.dims[1..].iter().product::<u64>();
    let (mut d_in, mut d_out) = (dense.dims[0] as usize, n_rows as usize);
    if u.ratio(1, 8)? {
        (d_in, d_out) = (u.int_in_range(1..=70)?, u.int_in_range(1..=70)?);
    }
    let stem = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
    let host = Host::of_shape(u, d_in, d_out)?;
    if u.ratio(3, 4)? {
        file.tensors.remove(at);
    }
    for sidecar in &host.sidecars {
        let suffix = sidecar.suffix.to_string_lossy();
        let mut dims: Vec<u64> = sidecar.ne.iter().map(|n| *n as u64).collect();
        while dims.len() > 1 && dims.last() == Some(&1) {
            dims.pop();
        }
        file.tensors.push(Tensor::new(format!("{stem}.{suffix}"), sidecar.ty as u32, &dims, sidecar.bytes().collect()));
    }
    if u.ratio(1, 16)? {
        return Ok(false);
    }
    file.set(format!("statecells.{stem}.scheme"), Value::text(host.scheme.as_bytes()));
    let gap = if u.ratio(1, 16)? { Value::text("wide") } else { Value::f32(0.25) };
    file.set(format!("statecells.{stem}.gap"), gap);
    Ok(!may_be_coded(&name, dense.dims.len()))
}

/// What docs/format.md says, told without the table that the loader asks.
fn may_be_coded(name: &str, n_dims: usize) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    n_dims == 2 && matches!(parts[..], ["blk", _, "ffn_gate" | "ffn_up" | "ffn_down", "weight"])
}

/// Loads the model and runs three tokens, in one batch and one by one. False where it is refused.
fn run(path: &Path, overrides: Vec<(String, Override)>) -> bool {
    let params = ModelParams { overrides, ..Default::default() };
    let Ok(model) = Model::load(Backend::init(), path, &params) else { return false };
    let params = ContextParams { n_ctx: 32, n_batch: 32, n_threads: 1, cache_type: Type::F32 };
    let Ok(mut context) = Context::new(&model, params) else { return false };
    // With --statecells-check an evaluation may fail.
    let _ = context.decode(&TOKENS, Outputs::All);
    for token in TOKENS {
        let _ = context.decode(&[token], Outputs::All);
    }
    true
}
