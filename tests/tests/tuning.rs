//! The models that `--tune` and `--token-weights` compute are those that llama.cpp runs.

use std::path::Path;

use end_to_end::logits::{Pace, distance, load_dense, logits};
use fixtures::architectures::{self, Number};
use fixtures::models::Model;
use ggml::gguf::GgufFile;
use tempfile::TempDir;
use whole_model::{Transformer, families};

/// F32 throughout, and sums in another order.
const TOLERANCE: f32 = 1e-4;

/// llama.cpp reads GELU from a table of F16 values.
const GELU_TOLERANCE: f32 = 4e-3;

/// How far the logits of the model at `path` are from those of llama.cpp; the text is longer than a window.
fn distance_of(path: &Path) -> f32 {
    let tokens: Vec<i32> = (0..48).map(|i| 3 + (i * 37) % 256).collect();
    let expected = logits(&load_dense(path).unwrap(), &tokens, Pace::Batch, 1);
    let file = GgufFile::open(path).unwrap();
    let model = Transformer::open(&file).unwrap();
    let unsigned: Vec<u32> = tokens.iter().map(|t| t.unsigned_abs()).collect();
    distance(&expected, &model.logits(&unsigned).unwrap())
}

#[test]
fn logits_are_those_of_llama_cpp() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let random = Model { n_embd: 96, n_heads: 3, n_layers: 3, ..Model::default() };
    Model { other_type: ggml::Type::F32, ..random }.write(&path).unwrap();
    let distance = distance_of(&path);
    assert!(distance < TOLERANCE, "{distance}");
}

#[test]
fn logits_of_every_family_are_those_of_llama_cpp() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    // Shared heads; windows of 5 tokens in all layers but every third; positions scaled.
    let shared: [(&str, Number); 6] = [
        ("block_count", Number::Count(4)),
        ("attention.head_count_kv", Number::Count(1)),
        ("attention.sliding_window", Number::Count(5)),
        ("attention.sliding_window_pattern", Number::Count(3)),
        ("rope.scaling.factor", Number::Real(2.0)),
        ("rope.scaling.attn_factor", Number::Real(1.1)),
    ];
    let capped = [
        ("attn_logit_softcapping", Number::Real(0.3)),
        ("final_logit_softcapping", Number::Real(0.5)),
        ("rope.freq_base_swa", Number::Real(300.0)),
    ];
    // Heads of another length than n_embd / heads.
    let long = [
        ("attention.key_length", Number::Count(48)),
        ("attention.value_length", Number::Count(48)),
    ];
    let part = [("rope.dimension_count", Number::Count(12))];
    for architecture in families() {
        let further: &[(&str, Number)] = match architecture {
            "gemma" => &long,
            "gemma2" | "gemma3" => &capped,
            "phi3" => &part,
            _ => &[],
        };
        for numbers in [&[][..], &[&shared, further].concat()] {
            architectures::write_with(architecture, numbers, &path).unwrap();
            let distance = distance_of(&path);
            let is_gelu = architecture.starts_with("gemma");
            let tolerance = if is_gelu { GELU_TOLERANCE } else { TOLERANCE };
            assert!(distance < tolerance, "{architecture} {numbers:?}: {distance}");
        }
    }
}
