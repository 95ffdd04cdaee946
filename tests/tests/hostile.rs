//! Damaged and forged coded files: every one is refused by name, none ends the program by a signal.

use dictionary::DictType;
use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::{ModelFile, Tensor};
use end_to_end::programs::{Run, assert_refused};
use fixtures::models::Model;
use format::{MatrixId, Role, Scheme, keys};
use ggml::Type;
use half::f16;
use tempfile::TempDir;

const UP: MatrixId = MatrixId { layer: 0, role: Role::Up };

/// A small file with scheme `sign+vals` or `sign+row_scale`, all sidecars intact.
fn intact(scheme: Scheme, has_gate: bool) -> ModelFile {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("base.gguf");
    Model { has_gate, ..Model::default() }.write(&path).unwrap();
    Twins::of(&ModelFile::read(&path), &Coding::global(scheme, DictType::F16)).coded
}

fn run(file: &ModelFile) -> Run {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("coded.gguf");
    file.write(&path);
    run_bytes(&std::fs::read(path).unwrap())
}

fn run_bytes(bytes: &[u8]) -> Run {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("coded.gguf");
    std::fs::write(&path, bytes).unwrap();
    let flags = "--statecells -no-cnv -p abc -n 2 --temp 0 -c 64 -t 1 --no-warmup -m";
    let path = path.to_str().unwrap();
    Run::of("llama-completion", flags.split(' ').chain([path]))
}

/// Changes an intact file by `change`; it must be refused with a line that holds `parts`.
fn refused(scheme: Scheme, change: impl FnOnce(&mut ModelFile), parts: &[&str]) {
    let mut file = intact(scheme, true);
    change(&mut file);
    assert_refused(&run(&file), parts);
}

fn up(suffix: &str) -> String {
    UP.with_suffix(suffix)
}

/// Overwrites the two bytes of element `index`.
fn set_u16(tensor: &mut Tensor, index: usize, bits: u16) {
    tensor.data[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
}

#[test]
fn the_intact_files_run() {
    for scheme in [Scheme::Sign, Scheme::SignRowScale, Scheme::SignVals] {
        let _ = run(&intact(scheme, true)).ok();
        let _ = run(&intact(scheme, false)).ok();
    }
}

#[test]
fn codes_out_of_range_are_refused() {
    let m = intact(Scheme::Sign, true).tensor(&up("dict")).dims[1] as i16;
    for code in [m + 1, -m - 1, i16::MAX, i16::MIN] {
        for index in [0, 3 * 11 + 10, 192 * 11 - 1] {
            let change = |file: &mut ModelFile| {
                set_u16(file.tensor_mut(&up("codes")), index, code as u16);
            };
            refused(Scheme::SignRowScale, change, &["blk.0.ffn_up", "code"]);
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let cases = [
        (Scheme::SignRowScale, "dict"),
        (Scheme::SignRowScale, "row_scale"),
        (Scheme::SignVals, "vals"),
    ];
    for (scheme, suffix) in cases {
        for value in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let last = intact(scheme, true).tensor(&up(suffix)).data.len() / 2 - 1;
            for index in [0, last] {
                let change = |file: &mut ModelFile| {
                    set_u16(file.tensor_mut(&up(suffix)), index, value.to_bits());
                };
                refused(scheme, change, &["blk.0.ffn_up", suffix]);
            }
        }
    }
}

#[test]
fn infinite_atoms_in_f32_are_refused() {
    let change = |file: &mut ModelFile| {
        let dict = file.tensor_mut(&up("dict"));
        let mut values = dict.to_f32();
        *values.last_mut().unwrap() = f32::NAN;
        *dict = Tensor::from_f32(&up("dict"), &dict.dims.clone(), &values);
    };
    refused(Scheme::SignVals, change, &["blk.0.ffn_up", "dict", "finite"]);
}

#[test]
fn wrong_types_are_refused() {
    let cases: [(&str, Type); 6] = [
        ("codes", Type::F16),
        ("codes", Type::BF16),
        ("dict", Type::I16),
        ("dict", Type::BF16),
        ("vals", Type::BF16),
        ("vals", Type::I16),
    ];
    for (suffix, ty) in cases {
        // the same size, so that nothing but the type is wrong
        let change = |file: &mut ModelFile| file.tensor_mut(&up(suffix)).ty = ty;
        refused(Scheme::SignVals, change, &["blk.0.ffn_up", suffix, "type"]);
    }
    let quantized = |file: &mut ModelFile| {
        let dict = file.tensor_mut(&up("dict"));
        let values = dict.to_f32();
        dict.data = Type::Q8_0.quantize(&values, dict.dims[0], None).unwrap();
        dict.ty = Type::Q8_0;
    };
    refused(Scheme::SignVals, quantized, &["blk.0.ffn_up", "dict", "type"]);
}

/// Sets the dimensions of a sidecar and makes its data fit.
fn reshape(file: &mut ModelFile, suffix: &str, dims: &[usize]) {
    let tensor = file.tensor_mut(&up(suffix));
    tensor.dims = dims.to_vec();
    let n_bytes = tensor.ty.tensor_bytes(dims).unwrap();
    tensor.data.resize(n_bytes, 0);
}

#[test]
fn wrong_shapes_are_refused() {
    // intact: dict [64, 61], codes [11, 192], vals [11, 192], row_scale [192]
    let cases: [(Scheme, &str, &[usize]); 14] = [
        (Scheme::SignVals, "dict", &[63, 61]),
        (Scheme::SignVals, "dict", &[61, 64]),
        (Scheme::SignVals, "dict", &[64]),
        (Scheme::SignVals, "dict", &[64, 61, 2]),
        (Scheme::SignVals, "dict", &[64, 32768]),
        (Scheme::SignVals, "codes", &[192, 11]),
        (Scheme::SignVals, "codes", &[11, 191]),
        (Scheme::SignVals, "codes", &[11, 193]),
        (Scheme::SignVals, "codes", &[12, 192]),
        (Scheme::SignVals, "codes", &[62, 192]),
        (Scheme::SignVals, "codes", &[11, 96, 2]),
        (Scheme::SignVals, "vals", &[11, 191]),
        (Scheme::SignRowScale, "row_scale", &[191]),
        (Scheme::SignRowScale, "row_scale", &[1, 192]),
    ];
    for (scheme, suffix, dims) in cases {
        refused(scheme, |file| reshape(file, suffix, dims), &["blk.0.ffn_up"]);
    }
}

#[test]
fn missing_sidecars_are_refused() {
    for (scheme, suffix) in [
        (Scheme::Sign, "dict"),
        (Scheme::Sign, "codes"),
        (Scheme::SignRowScale, "row_scale"),
        (Scheme::SignVals, "vals"),
    ] {
        refused(scheme, |file| file.replace(&up(suffix), []), &["blk.0.ffn_up", suffix]);
    }
    let all = |file: &mut ModelFile| {
        for suffix in ["dict", "codes"] {
            file.replace(&up(suffix), []);
        }
    };
    refused(Scheme::Sign, all, &["blk.0.ffn_up"]);
}

#[test]
fn sidecars_of_another_scheme_are_refused() {
    let key = keys::tensor_scheme(UP);
    for (scheme, said) in [
        (Scheme::SignVals, "sign"),
        (Scheme::SignVals, "sign+row_scale"),
        (Scheme::SignRowScale, "sign+vals"),
        (Scheme::SignRowScale, "sections"),
    ] {
        refused(scheme, |file| file.set(&key, said), &["blk.0.ffn_up"]);
    }
}

#[test]
fn unknown_schemes_and_versions_are_refused() {
    let key = keys::tensor_scheme(UP);
    for scheme in ["", "cosine", "sign+", "SIGN", "sign+row_scale "] {
        refused(Scheme::Sign, |file| file.set(&key, scheme), &["blk.0.ffn_up", "scheme"]);
    }
    let long = "x".repeat(100_000);
    refused(Scheme::Sign, |file| file.set(&key, long.as_str()), &["blk.0.ffn_up", "scheme"]);
    for version in [0u32, 2, u32::MAX] {
        let number = version.to_string();
        let change = |file: &mut ModelFile| file.set(keys::VERSION, version);
        refused(Scheme::Sign, change, &["version", &number]);
    }
    refused(Scheme::Sign, |file| file.remove_key(keys::VERSION), &[keys::VERSION]);
}

#[test]
fn metadata_of_another_type_is_refused() {
    let (scheme, gap) = (keys::tensor_scheme(UP), keys::tensor_gap(UP));
    refused(Scheme::Sign, |file| file.set(&scheme, 1u32), &["blk.0.ffn_up"]);
    refused(Scheme::Sign, |file| file.set(&scheme, vec!["sign".to_owned()]), &["blk.0.ffn_up"]);
    refused(Scheme::Sign, |file| file.set(&gap, "small"), &["blk.0.ffn_up"]);
    refused(Scheme::Sign, |file| file.set(keys::VERSION, "1"), &[keys::VERSION]);
    refused(Scheme::Sign, |file| file.set(keys::VERSION, vec![1u32]), &[keys::VERSION]);
}

/// A matrix that the graph never multiplies with.
#[test]
fn sidecars_for_tensors_that_the_model_lacks_are_refused() {
    let gate = MatrixId { layer: 0, role: Role::Gate };
    let beyond = MatrixId { layer: 7, role: Role::Up };
    for stray in [gate, beyond] {
        let mut file = intact(Scheme::Sign, false);
        for suffix in ["dict", "codes"] {
            let copy = file.tensor(&up(suffix)).clone();
            file.tensors.push(Tensor { name: stray.with_suffix(suffix), ..copy });
        }
        file.set(&keys::tensor_scheme(stray), "sign");
        assert_refused(&run(&file), &[&stray.stem()]);
    }
}

/// Sidecars that no metadata announce.
#[test]
fn sidecars_without_a_scheme_are_refused() {
    let key = keys::tensor_scheme(UP);
    refused(Scheme::Sign, |file| file.remove_key(&key), &["blk.0.ffn_up"]);
}

#[test]
fn truncated_files_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("coded.gguf");
    intact(Scheme::SignVals, true).write(&path);
    let bytes = std::fs::read(path).unwrap();
    for part in 0..16 {
        let run = run_bytes(&bytes[..bytes.len() * part / 16]);
        assert_refused(&run, &["error"]);
    }
}
