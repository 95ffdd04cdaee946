//! `quant_mix` against the real `llama-quantize`, which prints the types it would use.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use fixtures::installed;
use format::{MatrixId, MatrixShape, Role};
use ggml::Type;
use ggml::gguf::{Array, GgufFile, GgufWriter, Value};
use ggml::quant_mix::{FfnMatrix, QuantMix};

/// Types that `llama-quantize` would give the FFN matrices of `model`, in the order it prints them.
fn real_types(
    program: &Path,
    (model, imatrix): (&Path, Option<&Path>),
    mix: QuantMix,
) -> Vec<(MatrixId, MatrixShape, Type)> {
    let flag = imatrix.iter().flat_map(|path| [OsStr::new("--imatrix"), path.as_os_str()]);
    let output = Command::new(program)
        .args(["--allow-requantize", "--dry-run"])
        .args(flag)
        .arg(model)
        .arg(mix.name())
        .output()
        .expect("llama-quantize runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text.lines().filter_map(parse_line).collect()
}

/// `[ 1/ 9] blk.0.ffn_up.weight - [ 576, 1536, 1, 1], type = q4_1, size = 1 MiB -> 2 MiB (q5_1)`
fn parse_line(line: &str) -> Option<(MatrixId, MatrixShape, Type)> {
    let (_, rest) = line.split_once(']')?;
    let (name, rest) = rest.split_once(" - [")?;
    let tensor = MatrixId::of_weight(name.trim())?;
    let (dims, rest) = rest.split_once(']')?;
    let dims: Vec<usize> = dims.split(',').map(|d| d.trim().parse().unwrap()).collect();
    // A tensor that keeps its type is printed without the part in parentheses.
    let (_, source) = rest.split_once("type =")?;
    let kept = source.split(',').next()?.trim();
    let name =
        rest.rsplit_once('(').map_or(kept, |(_, name)| name.trim_end().trim_end_matches(')'));
    let ty = Type::from_name(name).unwrap_or_else(|| panic!("unknown type in '{line}'"));
    Some((tensor, MatrixShape::new(dims[0], dims[1]), ty))
}

fn compare(program: &Path, path: &Path, imatrix: Option<&Path>) -> usize {
    let model = GgufFile::open(path).unwrap();
    let architecture = model.architecture().unwrap();
    let n_layer = model.u32(&format!("{architecture}.block_count")).unwrap().unwrap() as usize;
    for mix in QuantMix::ALL {
        let real = real_types(program, (path, imatrix), mix);
        assert_eq!(real.len(), 3 * n_layer, "{mix}: every FFN matrix is printed");
        for (tensor, shape, ty) in real {
            let MatrixId { layer, role } = tensor;
            let (architecture, has_imatrix) = (&*architecture, imatrix.is_some());
            let matrix = FfnMatrix { role, layer, n_layer, shape, architecture, has_imatrix };
            assert_eq!(mix.ffn_type(&matrix), ty, "{mix} {matrix:?}");
        }
    }
    QuantMix::ALL.len() * 3 * n_layer
}

/// A file that holds the FFN matrices of a model and nothing else, all F16 zeros.
fn write_ffn_model(path: &Path, architecture: &str, n_layer: u32, (n_embd, n_ff): (usize, usize)) {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", architecture).unwrap();
    for (key, value) in [
        ("block_count", n_layer),
        ("context_length", 64),
        ("embedding_length", n_embd as u32),
        ("feed_forward_length", n_ff as u32),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("vocab_size", 8),
    ] {
        writer.set(&format!("{architecture}.{key}"), value).unwrap();
    }
    for key in ["layer_norm_rms_epsilon", "layer_norm_epsilon"] {
        writer.set(&format!("{architecture}.attention.{key}"), 1e-5f32).unwrap();
    }
    let mut sizes = Vec::new();
    for layer in 0..n_layer as usize {
        for role in Role::PLAIN {
            let dims = if role == Role::Down { [n_ff, n_embd] } else { [n_embd, n_ff] };
            writer.add_tensor(&MatrixId { layer, role }.weight(), Type::F16, &dims).unwrap();
            sizes.push(2 * dims[0] * dims[1]);
        }
    }
    let file = File::create(path).unwrap();
    writer.write(file, |i, out| out.write_all(&vec![0; sizes[i]])).unwrap();
}

/// An importance matrix of one token for all of them.
fn write_imatrix(path: &Path, n_layer: u32, (n_embd, n_ff): (usize, usize)) {
    let mut writer = GgufWriter::new();
    writer.set("general.type", "imatrix").unwrap();
    writer.set("imatrix.datasets", Value::Array(Array::String(vec!["none".into()]))).unwrap();
    writer.set("imatrix.chunk_count", 1u32).unwrap();
    writer.set("imatrix.chunk_size", 1u32).unwrap();
    let mut sizes = Vec::new();
    for layer in 0..n_layer as usize {
        for role in Role::PLAIN {
            let d_in = if role == Role::Down { n_ff } else { n_embd };
            let name = MatrixId { layer, role }.weight();
            writer.add_tensor(&format!("{name}.in_sum2"), Type::F32, &[d_in, 1]).unwrap();
            writer.add_tensor(&format!("{name}.counts"), Type::F32, &[1, 1]).unwrap();
            sizes.extend([d_in, 1]);
        }
    }
    let file = File::create(path).unwrap();
    writer.write(file, |i, out| out.write_all(&1f32.to_le_bytes().repeat(sizes[i]))).unwrap();
}

#[test]
fn types_are_those_of_llama_quantize_for_made_up_models() {
    let Some(program) = installed::program("llama-quantize") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (path, imatrix) = (dir.path().join("ffn.gguf"), dir.path().join("imatrix.gguf"));
    let mut n_compared = 0;
    for architecture in ["llama", "falcon"] {
        for n_layer in [3, 17, 40] {
            // Multiples of 256, of 32, and of neither.
            for shape in [(256, 512), (96, 256), (512, 160), (72, 100)] {
                write_ffn_model(&path, architecture, n_layer, shape);
                n_compared += compare(&program, &path, None);
                write_imatrix(&imatrix, n_layer, shape);
                n_compared += compare(&program, &path, Some(&imatrix));
            }
        }
    }
    eprintln!("{n_compared} types compared");
}

#[test]
fn types_are_those_of_llama_quantize_for_a_real_model() {
    let Some(program) = installed::program("llama-quantize") else { return };
    let Some(model) = installed::model() else { return };
    eprintln!("{} types compared", compare(&program, &model, None));
}
