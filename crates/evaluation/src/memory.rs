//! Sizes of files, and what a model needs at run time.

use std::collections::BTreeMap;
use std::path::Path;

use inspect::{FfnReport, Inspection, KvTypes};
use program::Selection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The shortest context that is shown; each further one is twice as long.
const FIRST_CONTEXT: u64 = 4096;

/// Sizes of one file, counted in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sizes {
    /// The file in bytes.
    pub file_bytes: u64,
    /// All tensors in bytes.
    pub tensor_bytes: u64,
    /// The FFN matrices in bytes, sidecars and dense weights; without layers for multi-token prediction.
    pub ffn_bytes: u64,
    /// Weights of the FFN matrices.
    pub ffn_weights: u64,
    /// Bits per weight over these.
    pub ffn_bits_per_weight: f64,
    /// How many FFN matrices are of which type or scheme: `gate q5_1`, `down sections`.
    pub ffn_types: BTreeMap<String, usize>,
    /// Bytes of the KV cache by context length in tokens; empty if the metadata does not tell.
    pub kv: Vec<KvPoint>,
}

/// The KV cache at one context length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvPoint {
    /// Tokens.
    pub n_ctx: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The file at `path` as a whole, for KV caches of `types`.
///
/// # Errors
/// Those of [`Inspection::new`].
pub fn inspect(path: &Path, n_ctx: Option<u64>, types: KvTypes) -> Result<Inspection, Error> {
    Ok(Inspection::new(path, &Selection::default(), n_ctx, types)?)
}

/// Sizes of the file at `path`.
///
/// # Errors
/// Those of [`Inspection::new`].
pub fn sizes(path: &Path, types: KvTypes) -> Result<Sizes, Error> {
    let file = inspect(path, None, types)?;
    let limit = file.memory.as_ref().and_then(|m| m.kv_cache.n_ctx_train);
    let mut kv = Vec::new();
    for n_ctx in contexts(limit) {
        if let Some(memory) = inspect(path, Some(n_ctx), types)?.memory {
            kv.push(KvPoint { n_ctx, bytes: memory.kv_cache.bytes });
        }
    }
    let ffn = run_by_text(&file);
    let ffn_bytes = ffn.iter().map(|t| t.bytes).sum::<u64>();
    let ffn_weights = ffn.iter().map(|t| t.n_weights()).sum::<u64>();
    Ok(Sizes {
        file_bytes: file.file_bytes,
        tensor_bytes: file.totals.tensor_bytes,
        ffn_bytes,
        ffn_weights,
        ffn_bits_per_weight: 8.0 * ffn_bytes as f64 / ffn_weights.max(1) as f64,
        ffn_types: ffn_types(ffn),
        kv,
    })
}

/// The FFN matrices of the layers that text runs through.
fn run_by_text(file: &Inspection) -> Vec<&FfnReport> {
    file.tensors.iter().filter(|t| t.layer < file.n_run_layers()).collect()
}

/// Context lengths from 4096 tokens to the model's limit, each twice the one before; the limit alone if it
/// is shorter.
fn contexts(limit: Option<u64>) -> Vec<u64> {
    let Some(limit) = limit.filter(|l| *l > 0) else { return Vec::new() };
    let doubled = std::iter::successors(Some(FIRST_CONTEXT), |n| n.checked_mul(2));
    let mut all: Vec<u64> = doubled.take_while(|n| *n < limit).collect();
    all.push(limit);
    all
}

/// How many matrices are of which kind.
pub(crate) fn ffn_types<'a>(
    tensors: impl IntoIterator<Item = &'a FfnReport>,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for tensor in tensors {
        let kind = tensor.scheme.as_ref().or(tensor.dense_type.as_ref());
        let kind = kind.map_or("unknown", String::as_str);
        *counts.entry(format!("{} {kind}", tensor.role)).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_double_up_to_the_limit() {
        assert_eq!(contexts(Some(20_000)), [4096, 8192, 16384, 20_000]);
        assert_eq!(contexts(Some(8192)), [4096, 8192]);
        assert_eq!(contexts(Some(512)), [512]);
        assert!(contexts(None).is_empty() && contexts(Some(0)).is_empty());
        assert!(contexts(Some(u64::MAX)).len() < 64);
    }

    #[test]
    fn sizes_of_a_small_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let model = fixtures::models::Model::default();
        model.write(&path).unwrap();
        let sizes = sizes(&path, KvTypes::default()).unwrap();
        let weights = 3 * model.n_layers * model.n_embd * model.n_ff;
        assert_eq!((sizes.ffn_weights, sizes.ffn_bytes), (weights as u64, 4 * weights as u64));
        assert_eq!(sizes.ffn_types["gate f32"], model.n_layers);
        // Two caches of F16, rounded up to 256 tokens.
        let kv = 2 * 2 * model.n_layers * model.n_embd * 512;
        assert_eq!(sizes.kv, [KvPoint { n_ctx: 512, bytes: kv as u64 }]);
    }

    #[test]
    fn layers_that_no_text_runs_through_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let model = fixtures::models::Model { n_mtp_layers: 1, ..Default::default() };
        model.write(&path).unwrap();
        let sizes = sizes(&path, KvTypes::default()).unwrap();
        let weights = 3 * model.n_layers * model.n_embd * model.n_ff;
        assert_eq!((sizes.ffn_weights, sizes.ffn_bytes), (weights as u64, 4 * weights as u64));
        assert_eq!(sizes.ffn_types["gate f32"], model.n_layers);
    }
}
