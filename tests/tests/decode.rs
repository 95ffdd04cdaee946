//! `--decode`: the dense file that a coded one stands for.

use std::path::Path;

use end_to_end::coding::{Coding, Twins};
use end_to_end::logits::{Pace, distance, load_coded, load_dense, logits};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused};
use fixtures::hostile;
use fixtures::models::Model;
use format::Scheme;
use ggml::Type;
use tempfile::TempDir;

fn base(folder: &Path) -> ModelFile {
    let path = folder.join("base.gguf");
    Model::default().write(&path).unwrap();
    ModelFile::read(&path)
}

fn decode(folder: &Path, more: &str) -> Run {
    let path = |name: &str| folder.join(name).display().to_string();
    let files = ["-i".to_owned(), path("coded.gguf"), "--decode".to_owned(), path("dense.gguf")];
    let more = more.split_whitespace().map(str::to_owned);
    Run::of("statecells-build", files.into_iter().chain(more))
}

/// Of every scheme, whether the dense weights are still there or not: exactly the values that the codec gives, and no trace
/// of the codes.
#[test]
fn decoded_files_are_the_dense_twins() {
    let folder = TempDir::new().unwrap();
    let base = base(folder.path());
    for coding in Coding::all() {
        for keep_dense in [false, true] {
            let twins = Twins::of(&base, &Coding { keep_dense, ..coding.clone() });
            twins.coded.write(&folder.path().join("coded.gguf"));
            let _ = decode(folder.path(), "--decode-type f32 --force -t 1").ok();
            let made = ModelFile::read(&folder.path().join("dense.gguf"));
            let key =
                |file: &ModelFile| file.metadata.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
            assert_eq!(key(&made), key(&base), "{coding:?}");
            assert_eq!(made.tensors.len(), twins.dense.tensors.len());
            for (a, b) in made.tensors.iter().zip(&twins.dense.tensors) {
                assert_eq!((&a.name, a.ty, &a.dims), (&b.name, b.ty, &b.dims), "{coding:?}");
                assert!(a.data == b.data, "{coding:?}: {}", a.name);
            }
        }
    }
}

/// llama.cpp, which then knows nothing of codes, computes what it computes from them.
#[test]
fn decoded_files_run_as_coded_ones() {
    let folder = TempDir::new().unwrap();
    let twins = Twins::of(&base(folder.path()), &Coding::sections(0.01));
    let (coded, dense) = (folder.path().join("coded.gguf"), folder.path().join("dense.gguf"));
    twins.coded.write(&coded);
    let _ = decode(folder.path(), "").ok();
    let made = ModelFile::read(&dense);
    let is_kept = |name: &str| twins.coded.tensors.iter().any(|t| t.name == name);
    let types: Vec<_> = made.tensors.iter().filter(|t| !is_kept(&t.name)).map(|t| t.ty).collect();
    assert!(!types.is_empty() && types.iter().all(|ty| *ty == Type::F16), "{types:?}");
    let tokens: Vec<_> = (3..35).collect();
    let exact = folder.path().join("exact.gguf");
    twins.dense.write(&exact);
    let logits = |model: llama::Model| logits(&model, &tokens, Pace::Batch, 1);
    let decoded = logits(load_dense(&dense).unwrap());
    let of_weights = distance(&logits(load_dense(&exact).unwrap()), &decoded);
    assert!(of_weights < 5e-3, "{of_weights}");
    // The run-time rounds what the codes are multiplied with.
    let of_codes = distance(&logits(load_coded(&coded).unwrap()), &decoded);
    assert!(of_codes < 0.1, "{of_codes}");
}

#[test]
fn what_cannot_be_decoded_is_refused_at_the_start() {
    let folder = TempDir::new().unwrap();
    let base = base(folder.path());
    let coding = Coding::global(Scheme::Sign, dictionary::DictType::F16);
    base.write(&folder.path().join("coded.gguf"));
    for dry in ["", " --dry-run"] {
        assert_refused(&decode(folder.path(), dry), &["coded.gguf", "not coded"]);
    }
    Twins::of(&base, &coding).coded.write(&folder.path().join("coded.gguf"));
    // Rows of 64 values.
    for dry in ["", " --dry-run"] {
        let run = decode(folder.path(), &format!("--decode-type q5_K{dry}"));
        assert_refused(&run, &["--decode-type", "blk.0.ffn_gate", "rows of 64", "q8_0"]);
    }
    assert!(!folder.path().join("dense.gguf").exists());
    let _ = decode(folder.path(), "--dry-run").ok();
    assert!(!folder.path().join("dense.gguf").exists());
    let _ = decode(folder.path(), "--decode-type q8_0").ok();
    assert_refused(
        &decode(folder.path(), ""),
        &["--decode", "dense.gguf already exists", "--force"],
    );
    for (flags, parts) in [
        ("--decode-type iq2_xxs", &["--decode-type", "importance matrix"][..]),
        ("--decode-type q9", &["--decode-type", "q8_0"]),
        ("--S 6", &["--S", "--decode"]),
        ("--layers 0", &["--layers", "--decode"]),
        ("-o out.gguf", &["--output", "--decode"]),
    ] {
        let run = decode(folder.path(), flags);
        assert_eq!(run.code, Some(2), "{flags}: {}", run.stderr);
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "{flags}: {}", run.stderr);
    }
}

/// Coded tensors that lie are decoded or refused in one line, and nothing is left of those that are refused.
#[test]
fn no_coded_file_brings_the_decoder_down() {
    let folder = TempDir::new().unwrap();
    let (mut faults, mut n_refused) = (Vec::new(), 0);
    let cases = [hostile::coded(), hostile::strays(), hostile::misplaced()].concat();
    for case in &cases {
        std::fs::write(folder.path().join("coded.gguf"), &case.bytes).unwrap();
        let run = decode(folder.path(), "--force -t 1");
        let dense = folder.path().join("dense.gguf");
        let is_refused = run.code == Some(1) && !dense.exists() && run.stderr.lines().count() == 1;
        n_refused += usize::from(is_refused);
        if !is_refused && run.code != Some(0) {
            faults.push(format!("{}: {:?}: {}", case.name, run.code, run.stderr));
        }
        let _ = std::fs::remove_file(dense);
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert!(4 * n_refused > 3 * cases.len(), "{n_refused} of {} refused", cases.len());
}
