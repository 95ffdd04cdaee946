//! The model as a GGUF that llama.cpp runs.

use std::io::BufWriter;
use std::path::Path;

use ggml::Type;
use ggml::gguf::{GgufWriter, WriteError};
use half::f16;
use program::files::Unfinished;

use crate::tiny::model::{Config, EXPERT, Model, Parameter};
use crate::tiny::{Error, vocabulary};

/// Longest text that the file admits; training sees shorter ones.
const CONTEXT_LENGTH: u32 = 512;

/// Writes `model` to `path`, which appears when it is complete: matrices in F16, norms in F32.
///
/// # Errors
/// [`Error::Tensor`], [`Error::Write`] or [`Error::Program`].
pub fn write(model: &Model, path: &Path) -> Result<(), Error> {
    let failed = |cause: WriteError| Error::Write { path: path.to_owned(), cause };
    let mut writer = GgufWriter::new();
    add_metadata(&mut writer, &model.config()).map_err(failed)?;
    let mut data = Vec::new();
    for (name, parameters) in tensors(model) {
        let mut all = Vec::new();
        let (ty, mut dims, _) = encoded(parameters[0])?;
        for p in &parameters {
            all.extend(encoded(p)?.2);
        }
        if name.ends_with("_exps.weight") {
            dims.push(parameters.len());
        }
        writer.add_tensor(&name, ty, &dims).map_err(failed)?;
        data.push(all);
    }
    let mut file = Unfinished::create(path)?;
    let out = BufWriter::new(file.file());
    writer.write(out, |i, out| out.write_all(&data[i])).map_err(failed)?;
    Ok(file.publish()?)
}

/// The parameters of every tensor of the file, in their order: of experts' matrices those of all experts.
fn tensors(model: &Model) -> Vec<(String, Vec<&Parameter>)> {
    let mut tensors: Vec<(String, Vec<&Parameter>)> = Vec::new();
    for p in model.parameters() {
        let name = match p.name.split_once(EXPERT) {
            Some((stem, _)) => format!("{stem}_exps.weight"),
            None => p.name.clone(),
        };
        match tensors.iter_mut().find(|(known, _)| *known == name) {
            Some((_, parameters)) => parameters.push(p),
            None => tensors.push((name, vec![p])),
        }
    }
    tensors
}

fn add_metadata(writer: &mut GgufWriter, config: &Config) -> Result<(), WriteError> {
    writer.set("general.architecture", "llama")?;
    writer.set("general.name", "tiny transformer")?;
    writer.set("general.file_type", 1u32)?;
    let mut number = |key: &str, value: usize| writer.set(&format!("llama.{key}"), value as u32);
    number("context_length", CONTEXT_LENGTH as usize)?;
    number("embedding_length", config.n_embd)?;
    number("block_count", config.n_layers)?;
    number("feed_forward_length", config.n_ff)?;
    number("attention.head_count", config.n_heads)?;
    number("attention.head_count_kv", config.n_heads)?;
    number("rope.dimension_count", config.head_dim())?;
    number("vocab_size", vocabulary::size())?;
    if config.n_experts > 0 {
        number("expert_count", config.n_experts)?;
        number("expert_used_count", config.n_used)?;
    }
    writer.set("llama.attention.layer_norm_rms_epsilon", Config::NORM_EPS)?;
    writer.set("llama.rope.freq_base", Config::FREQ_BASE)?;
    vocabulary::add_to(writer)
}

/// Type, dimensions (innermost first) and bytes of a parameter as llama.cpp stores it.
fn encoded(p: &Parameter) -> Result<(Type, Vec<usize>, Vec<u8>), Error> {
    if p.var.rank() == 1 {
        let values = p.var.to_vec1::<f32>()?;
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        return Ok((Type::F32, vec![values.len()], bytes));
    }
    // Matrices are kept transposed, except for the embedding.
    let is_embedding = p.name == "token_embd.weight";
    let stored = if is_embedding { p.var.as_tensor().clone() } else { p.var.t()?.contiguous()? };
    let (rows, columns) = stored.dims2()?;
    let values = stored.flatten_all()?.to_vec1::<f32>()?;
    let bytes = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    Ok((Type::F16, vec![columns, rows], bytes))
}
