//! The model that `--tune` and `--sequential` compute is the one that llama.cpp runs.

use end_to_end::logits::{Pace, distance, load_dense, logits};
use fixtures::models::Model;
use ggml::gguf::GgufFile;
use tempfile::TempDir;
use whole_model::Llama;

/// F32 throughout, but for F16 values in llama.cpp's rotation tables and sums in another order.
const TOLERANCE: f32 = 1e-3;

#[test]
fn logits_are_those_of_llama_cpp() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let random = Model { n_embd: 96, n_heads: 3, n_layers: 3, ..Model::default() };
    Model { other_type: ggml::Type::F32, ..random }.write(&path).unwrap();
    let tokens: Vec<i32> = (0..40).map(|i| 3 + (i * 37) % 256).collect();
    let expected = logits(&load_dense(&path).unwrap(), &tokens, Pace::Batch, 1);
    let file = GgufFile::open(&path).unwrap();
    let model = Llama::load(&file).unwrap();
    let ffn: Vec<_> = (0..model.n_layers()).map(|n| Llama::ffn(&file, n).unwrap()).collect();
    let unsigned: Vec<u32> = tokens.iter().map(|t| t.unsigned_abs()).collect();
    let found = model.logits(&unsigned, &ffn).unwrap().to_vec2::<f32>().unwrap();
    let distance = distance(&expected, &found);
    assert!(distance < TOLERANCE, "{distance}");
}
