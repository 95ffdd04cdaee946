//! Dimensions and constants of a llama model, from its metadata.

use ggml::gguf::{GgufFile, Value};

use crate::TuningError;

/// What the frequencies of some models are divided by.
const FACTORS: &str = "rope_freqs.weight";

/// Dimensions and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Number of layers.
    pub n_layer: usize,
    /// Width of the hidden state.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads.
    pub n_head_kv: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Added to the mean square before the root.
    pub rms_eps: f32,
    /// Rotation per position of each pair of a head's values, `[head_dim / 2]`.
    pub frequencies: Vec<f32>,
}

impl Config {
    /// Reads it from `file`.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`] or [`TuningError::Gguf`].
    pub fn read(file: &GgufFile) -> Result<Self, TuningError> {
        let unsupported =
            |reason: String| TuningError::Unsupported { path: file.path().to_owned(), reason };
        let architecture = file.architecture()?;
        if architecture != "llama" {
            return Err(unsupported(format!("is of architecture '{architecture}'")));
        }
        let optional = |key: &str| -> Result<Option<usize>, TuningError> {
            Ok(file.u32(&format!("llama.{key}"))?.map(|v| v as usize))
        };
        let required = |key: &str| {
            let found = optional(key)?.filter(|v| *v > 0);
            found.ok_or_else(|| unsupported(format!("has no usable 'llama.{key}'")))
        };
        let (n_embd, n_head) = (required("embedding_length")?, required("attention.head_count")?);
        let n_head_kv = optional("attention.head_count_kv")?.unwrap_or(n_head);
        let head_dim = optional("attention.key_length")?.unwrap_or(n_embd / n_head);
        if n_head_kv == 0 || n_head % n_head_kv != 0 || head_dim < 2 || head_dim % 2 != 0 {
            return Err(unsupported(format!(
                "has {n_head} heads of {head_dim} values over {n_head_kv}"
            )));
        }
        if optional("attention.value_length")?.is_some_and(|v| v != head_dim)
            || optional("rope.dimension_count")?.is_some_and(|v| v != head_dim)
        {
            return Err(unsupported("rotates or stores a part of its heads only".to_owned()));
        }
        if optional("expert_count")?.is_some_and(|n| n > 0) {
            return Err(unsupported("is a mixture of experts".to_owned()));
        }
        check_positions(file).map_err(&unsupported)?;
        if file.bool("llama.attention.causal")? == Some(false) {
            return Err(unsupported("looks at later tokens (llama.attention.causal)".to_owned()));
        }
        Ok(Self {
            n_layer: required("block_count")?,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            rms_eps: file.f32("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            frequencies: frequencies(file, head_dim)?,
        })
    }
}

/// Refuses positions that are scaled, in whatever way.
fn check_positions(file: &GgufFile) -> Result<(), String> {
    let key = |name: &str| format!("llama.rope.{name}");
    match file.value(&key("scaling.type")) {
        Some(Value::String(kind)) if kind == "none" => return Ok(()),
        Some(Value::String(kind)) if kind != "linear" => {
            return Err(format!("scales its positions ({kind})"));
        }
        _ => {}
    }
    // Without a type, llama.cpp scales them linearly by a factor other than 0.
    for name in [key("scaling.factor"), key("scale_linear")] {
        match file.value(&name) {
            None | Some(Value::F32(0.0 | 1.0)) => {}
            Some(_) => return Err(format!("scales its positions ({name})")),
        }
    }
    Ok(())
}

/// `base^(-2i / head_dim)`, divided by the factors that some models bring along.
fn frequencies(file: &GgufFile, head_dim: usize) -> Result<Vec<f32>, TuningError> {
    let base = f64::from(file.f32("llama.rope.freq_base")?.unwrap_or(10_000.0));
    let plain = (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64));
    let factors = match file.tensor(FACTORS) {
        Some(tensor) if tensor.n_elements() == head_dim / 2 => file.to_f32(tensor)?,
        Some(tensor) => {
            let reason = format!("has a tensor '{FACTORS}' of {:?}", tensor.dims());
            return Err(TuningError::Unsupported { path: file.path().to_owned(), reason });
        }
        None => vec![1.0; head_dim / 2],
    };
    Ok(plain.zip(factors).map(|(f, factor)| (f / f64::from(factor)) as f32).collect())
}
