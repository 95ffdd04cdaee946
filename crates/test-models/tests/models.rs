//! What is written can be read back, and is what the description says.

use std::path::Path;

use ggml::Type;
use ggml::gguf::GgufFile;
use test_models::{Model, write_imatrix};

fn write(model: &Model, path: &Path) -> GgufFile {
    model.write(path).unwrap();
    GgufFile::open(path).unwrap()
}

#[test]
fn a_model_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model { ffn_type: Type::Q4_0, ..Model::default() };
    let file = write(&model, &dir.path().join("m.gguf"));
    assert_eq!(file.architecture().unwrap(), "llama");
    let gate = file.tensor("blk.1.ffn_gate.weight").unwrap();
    assert_eq!((gate.ty(), gate.dims()), (Type::Q4_0, [64, 192].as_slice()));
    assert_eq!(file.tensors().len(), 3 + 2 * 9);
}

#[test]
fn the_same_description_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |name: &str, seed| {
        let path = dir.path().join(name);
        write(&Model { seed, has_gate: false, ..Model::default() }, &path);
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("a", 1), bytes("b", 1));
    assert_ne!(bytes("a", 1), bytes("c", 2));
}

#[test]
fn single_weights_can_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let damage = |name: &str, values: &mut [f32]| {
        if name == "blk.0.ffn_up.weight" {
            values[70] = f32::NAN;
        }
    };
    Model::default().write_with(&path, |w| w.set("test.key", 3u32), damage).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let values = file.to_f32(file.tensor("blk.0.ffn_up.weight").unwrap()).unwrap();
    assert_eq!(values.iter().position(|v| v.is_nan()), Some(70));
    assert_eq!(file.u32("test.key").unwrap(), Some(3));
}

#[test]
fn an_imatrix_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.gguf");
    let weight = "blk.0.ffn_up.weight";
    write_imatrix(&path, &[(weight.to_owned(), vec![1.0, 2.0])], 4.0).unwrap();
    let imatrix = ggml::imatrix::Imatrix::open(&path).unwrap();
    assert_eq!(imatrix.importance(weight, 2).unwrap(), [1.0, 2.0]);
}
