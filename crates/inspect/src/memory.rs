//! Memory at run time: weights and the KV cache.

use ggml::Type;
use ggml::gguf::GgufFile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::hparams::per_layer;

/// llama.cpp rounds the length of the cache up to a multiple of this many tokens.
const CTX_GRANULE: u64 = 256;

/// Types of the keys and values in the cache (llama.cpp's `-ctk` and `-ctv`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvTypes {
    /// Type of the keys.
    pub keys: Type,
    /// Type of the values.
    pub values: Type,
}

impl KvTypes {
    /// Types that llama.cpp takes for its KV cache.
    pub const ALL: [Type; 9] = [
        Type::F32,
        Type::F16,
        Type::BF16,
        Type::Q8_0,
        Type::Q4_0,
        Type::Q4_1,
        Type::IQ4_NL,
        Type::Q5_0,
        Type::Q5_1,
    ];

    /// The type called `name`, if the cache can have it.
    ///
    /// # Errors
    /// What to use instead, for messages about a flag.
    pub fn parse(name: &str) -> Result<Type, String> {
        let known = Type::from_name(name).filter(|t| Self::ALL.contains(t));
        known.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|t| t.name()).collect();
            format!("use one of {}", names.join(", "))
        })
    }
}

impl Default for KvTypes {
    fn default() -> Self {
        Self { keys: Type::F16, values: Type::F16 }
    }
}

/// Memory that a model needs at run time, without compute buffers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Bytes of all tensors of the file.
    pub weights_bytes: u64,
    /// The KV cache.
    pub kv_cache: KvCache,
    /// Weights and KV cache.
    pub total_bytes: u64,
}

/// The KV cache of one sequence.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KvCache {
    /// Tokens asked for.
    pub n_ctx: u64,
    /// Tokens that the model is made for.
    pub n_ctx_train: Option<u64>,
    /// Type of the keys, by ggml's name.
    pub type_k: String,
    /// Type of the values, by ggml's name.
    pub type_v: String,
    /// Bytes for `n_ctx` tokens, rounded up to a multiple of 256 as llama.cpp does.
    pub bytes: u64,
    /// Whether some layers attend to a window only and may need less than `bytes`.
    pub is_upper_bound: bool,
}

impl Memory {
    /// Memory for `n_ctx` tokens (`None`: as many as the model is made for), or `None` if the metadata does
    /// not describe attention heads.
    pub(super) fn new(
        file: &GgufFile,
        architecture: &str,
        n_layers: usize,
        weights_bytes: u64,
        n_ctx: Option<u64>,
        types: KvTypes,
    ) -> Result<Option<Self>, Error> {
        let number = |key: &str| per_layer(file, architecture, key, 0);
        let n_ctx_train = number("context_length");
        let Some(n_ctx) = n_ctx.or(n_ctx_train) else { return Ok(None) };
        let Some(widths) = kv_widths(file, architecture, n_layers) else { return Ok(None) };
        let padded = n_ctx.checked_next_multiple_of(CTX_GRANULE).unwrap_or(u64::MAX);
        let mut bytes: u64 = 0;
        for (n_keys, n_values) in widths {
            let row = row_bytes("--ctk", types.keys, n_keys)?.saturating_add(row_bytes(
                "--ctv",
                types.values,
                n_values,
            )?);
            bytes = bytes.saturating_add(padded.saturating_mul(row));
        }
        let kv_cache = KvCache {
            n_ctx,
            n_ctx_train,
            type_k: types.keys.to_string(),
            type_v: types.values.to_string(),
            bytes,
            is_upper_bound: number("attention.sliding_window").is_some_and(|w| w > 0),
        };
        let total_bytes = weights_bytes.saturating_add(bytes);
        Ok(Some(Self { weights_bytes, kv_cache, total_bytes }))
    }
}

fn row_bytes(flag: &'static str, ty: Type, n: usize) -> Result<u64, Error> {
    let bytes = ty.row_bytes(n).ok_or(Error::KvType { flag, ty, n })?;
    Ok(bytes as u64)
}

/// Numbers of key and value entries per token, for every layer with attention.
fn kv_widths(file: &GgufFile, architecture: &str, n_layers: usize) -> Option<Vec<(usize, usize)>> {
    // Layers beyond those that the file has tensors for cannot be: the number is only claimed.
    if n_layers > file.tensors().len() {
        return None;
    }
    let number = |key: &str, layer| per_layer(file, architecture, key, layer);
    let n_embd = number("embedding_length", 0)?;
    let mut widths = Vec::with_capacity(n_layers);
    for layer in 0..n_layers {
        let n_head = number("attention.head_count", layer)?;
        let n_head_kv = number("attention.head_count_kv", layer).unwrap_or(n_head);
        if n_head_kv == 0 {
            continue;
        }
        let head = |key| number(key, layer).or_else(|| n_embd.checked_div(n_head));
        let width = |key| usize::try_from(head(key)?.checked_mul(n_head_kv)?).ok();
        widths.push((width("attention.key_length")?, width("attention.value_length")?));
    }
    (!widths.is_empty()).then_some(widths)
}
