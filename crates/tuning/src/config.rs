//! Dimensions and constants of a llama model, from its metadata.

use ggml::gguf::GgufFile;

use crate::TuningError;

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
        let scaling = file.string("llama.rope.scaling.type")?;
        if scaling.as_deref().is_some_and(|kind| kind != "none") {
            return Err(unsupported("scales its positions".to_owned()));
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

/// `base^(-2i / head_dim)`, divided by the factors that some models bring along.
fn frequencies(file: &GgufFile, head_dim: usize) -> Result<Vec<f32>, TuningError> {
    let base = f64::from(file.f32("llama.rope.freq_base")?.unwrap_or(10_000.0));
    let plain = (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64));
    let factors = match file.tensor("rope_freqs.weight") {
        Some(tensor) if tensor.n_elements() == head_dim / 2 => file.to_f32(tensor)?,
        _ => vec![1.0; head_dim / 2],
    };
    Ok(plain.zip(factors).map(|(f, factor)| (f / f64::from(factor)) as f32).collect())
}
