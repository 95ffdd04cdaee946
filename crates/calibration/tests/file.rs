//! Calibration files: what is written is read back, and what is damaged is refused.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::{
    CalibratedInput, Calibration, CalibrationError, Experts, Fitted, GrowingInput, ModelId,
    MomentScratch, Provenance, Samples, SecondMoment, TextId, TextSketch, write,
};
use format::{InputId, InputRole, MatrixId, Role};
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter, Value};
use numerics::{MatMul, ReferenceMatMul};

const N_EMBD: usize = 6;
const N_FF: usize = 10;

fn rows(d: usize, n: usize) -> Vec<f32> {
    (0..d * n).map(|i| ((i * 7919 + 13) % 101) as f32 - 50.0).collect()
}

fn moment(d: usize, n: usize) -> SecondMoment {
    let mut moment = SecondMoment::new(d);
    moment.add(&rows(d, n), &ReferenceMatMul, &mut MomentScratch::default());
    moment
}

fn samples(d: usize, n: usize) -> Samples {
    let mut samples = Samples::new(d);
    rows(d, n).chunks(d).for_each(|x| samples.push(x));
    samples
}

fn provenance() -> Provenance {
    let tokens: Vec<i32> = (0..90).collect();
    Provenance {
        model: ModelId {
            sha256: "ab".repeat(32),
            architecture: "llama".to_owned(),
            n_layer: 3,
            n_embd: N_EMBD as u32,
            n_ff: N_FF as u32,
        },
        texts: vec![TextId { name: "text.txt".to_owned(), sha256: "cd".repeat(32) }],
        sketch: TextSketch::of([&tokens[..]]),
        n_fitted: 20,
        n_held_out: 4,
        n_ctx: 4,
        tokens: (0..24).collect(),
        seed: 7,
        tool: "test 1".to_owned(),
        llama_cpp: "test 2".to_owned(),
    }
}

fn inputs() -> BTreeMap<InputId, CalibratedInput> {
    let moments = CalibratedInput {
        fitted: Fitted::Moment(moment(N_EMBD, 20)),
        holdout_moment: Some(moment(N_EMBD, 4)),
        holdout: samples(N_EMBD, 3),
        experts: Experts::Moments(vec![
            moment(N_EMBD, 7),
            SecondMoment::new(N_EMBD),
            moment(N_EMBD, 2),
        ]),
    };
    let sampled = CalibratedInput {
        fitted: Fitted::Samples(samples(N_FF, 5)),
        holdout_moment: None,
        holdout: samples(N_FF, 1),
        experts: Experts::Unknown,
    };
    BTreeMap::from([
        (InputId { layer: 1, role: InputRole::FfnIn }, moments),
        (InputId { layer: 1, role: InputRole::FfnDown }, sampled),
    ])
}

/// The same with the squares alone of what two experts have seen.
fn inputs_with_squares() -> BTreeMap<InputId, CalibratedInput> {
    let mut growing = GrowingInput::new(N_EMBD, 0);
    let by = (&ReferenceMatMul as &dyn MatMul, &mut MomentScratch::default());
    growing.add_by_expert(&rows(N_EMBD, 2), &[0, 0], (2, false), by);
    let mut inputs = inputs();
    let known = inputs.get_mut(&InputId { layer: 1, role: InputRole::FfnIn }).unwrap();
    known.experts = growing.finish().experts;
    inputs
}

fn tensor(layer: usize, role: Role) -> MatrixId {
    MatrixId { layer, role }
}

fn bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, &provenance(), &inputs()).unwrap();
    bytes
}

fn open(path: &Path, bytes: &[u8]) -> Result<Calibration, CalibrationError> {
    std::fs::write(path, bytes).unwrap();
    Calibration::open(path)
}

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let calibration = open(&dir.path().join("calib.gguf"), &bytes()).unwrap();
    assert_eq!(bytes(), bytes());
    assert_eq!(calibration.provenance(), &provenance());
    for (role, input) in [
        (Role::Gate, InputRole::FfnIn),
        (Role::Up, InputRole::FfnIn),
        (Role::Down, InputRole::FfnDown),
    ] {
        let read = calibration.input(tensor(1, role).input()).unwrap();
        assert_eq!(read, inputs()[&InputId { layer: 1, role: input }]);
        assert!(!calibration.covers(tensor(0, role).input()));
        let error = calibration.input(tensor(0, role).input()).unwrap_err();
        assert!(matches!(error, CalibrationError::NoInput { .. }), "{error}");
    }
    let squares = inputs_with_squares();
    let mut bytes = Vec::new();
    write(&mut bytes, &provenance(), &squares).unwrap();
    let read = open(&dir.path().join("squares.gguf"), &bytes).unwrap();
    let input = InputId { layer: 1, role: InputRole::FfnIn };
    assert_eq!(read.input(input).unwrap(), squares[&input]);
    assert_eq!(squares[&input].experts.n_tokens(), [2, 0]);
    let up = calibration.input(tensor(1, Role::Up).input()).unwrap();
    assert_eq!(up.d(), N_EMBD);
    let h = up.second_moment().unwrap();
    let diagonal: Vec<f32> = (0..N_EMBD).map(|i| h[i * N_EMBD + i]).collect();
    assert_eq!(up.mean_squares(), diagonal);
    assert_eq!(up.holdout_samples(), rows(N_EMBD, 3));
    let down = calibration.input(tensor(1, Role::Down).input()).unwrap();
    assert!(down.second_moment().is_none() && down.holdout_moment().is_none());
    let squares: f32 = rows(N_FF, 5).iter().step_by(N_FF).map(|x| x * x).sum();
    assert_eq!(down.mean_squares()[0], squares / 5.0);
}

#[test]
fn another_models_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let calibration = open(&dir.path().join("calib.gguf"), &bytes()).unwrap();
    let own = provenance().model;
    calibration.check_model(&own).unwrap();
    let others = [
        ModelId { sha256: "ef".repeat(32), ..own.clone() },
        ModelId { architecture: "qwen3".to_owned(), ..own.clone() },
        ModelId { n_layer: 4, ..own.clone() },
        ModelId { n_embd: 7, ..own.clone() },
        ModelId { n_ff: 11, ..own.clone() },
    ];
    for other in others {
        let message = calibration.check_model(&other).unwrap_err().to_string();
        assert!(message.contains("made for another model"), "{message}");
        assert!(message.contains("run statecells-calib") && message.lines().count() == 1);
    }
}

/// Opens and reads everything; the first error.
fn read_all(path: &Path, bytes: &[u8]) -> Result<(), CalibrationError> {
    let calibration = open(path, bytes)?;
    Role::PLAIN.into_iter().try_for_each(|t| calibration.input(tensor(1, t).input()).map(drop))
}

#[test]
fn truncated_files_are_refused_and_no_byte_makes_reading_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calib.gguf");
    let good = bytes();
    for n in (0..good.len() - 64).step_by(97) {
        assert!(read_all(&path, &good[..n]).is_err(), "{n}");
    }
    let mut refused = 0;
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= [0x01, 0x80, 0xff][i % 3];
        refused += usize::from(read_all(&path, &bad).is_err());
    }
    assert!(refused > good.len() / 4, "{refused}");
}

/// The file with other metadata and tensors `changed(name, type, dims, data)`; `None` leaves one out.
fn rewrite(
    path: &Path,
    metadata: &[(&str, Value)],
    changed: impl Fn(&str, Type, &[usize], &[u8]) -> Option<(Type, Vec<usize>, Vec<u8>)>,
) -> Result<(), CalibrationError> {
    std::fs::write(path, bytes()).unwrap();
    let file = GgufFile::open(path).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata_from(&file, |_| true);
    for (key, value) in metadata {
        writer.set(key, value.clone()).unwrap();
    }
    let mut kept = Vec::new();
    for t in file.tensors() {
        if let Some((ty, dims, data)) = changed(t.name(), t.ty(), t.dims(), file.data(t)) {
            writer.add_tensor(t.name(), ty, &dims).unwrap();
            kept.push(data);
        }
    }
    let mut out = Vec::new();
    writer.write(&mut out, |i, out| out.write_all(&kept[i])).unwrap();
    read_all(path, &out)
}

#[test]
fn files_that_cannot_be_true_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calib.gguf");
    let same =
        |_: &str, ty: Type, dims: &[usize], data: &[u8]| Some((ty, dims.to_vec(), data.to_vec()));
    rewrite(&path, &[], same).unwrap();
    let metadata: [(&str, Value); 9] = [
        ("general.type", "model".into()),
        ("calibration.version", 2u32.into()),
        ("calibration.version", "x".into()),
        ("calibration.model.n_embd", 7u32.into()),
        ("calibration.model.n_ff", 9u32.into()),
        ("calibration.tokens.fitted", 0u64.into()),
        ("calibration.text.names", vec![String::new(); 2].into()),
        ("calibration.text.shingle_hashes", vec![2u64, 1].into()),
        ("calibration.text.shingle_tokens", 31u32.into()),
    ];
    let mut messages = Vec::new();
    for change in metadata {
        messages.push(rewrite(&path, &[change], same).unwrap_err().to_string());
    }
    let replace =
        |wanted: &'static str, with: Option<(Type, Vec<usize>, Vec<u8>)>| {
            rewrite(&path, &[], move |name, ty, dims, data| {
                if name == wanted { with.clone() } else { same(name, ty, dims, data) }
            })
        };
    let f32s = |n: usize, value: f32| (Type::F32, vec![n], value.to_le_bytes().repeat(n));
    let h_len = N_EMBD * (N_EMBD + 1) / 2;
    for (name, with) in [
        ("blk.1.ffn_in.h", None),
        ("blk.1.ffn_in.h", Some(f32s(h_len - 1, 1.0))),
        ("blk.1.ffn_in.h", Some(f32s(h_len, -1.0))),
        ("blk.1.ffn_in.h", Some(f32s(h_len, f32::NAN))),
        ("blk.1.ffn_in.h", Some((Type::F16, vec![h_len], vec![0; 2 * h_len]))),
        ("blk.1.ffn_in.holdout_h", Some(f32s(1, 1.0))),
        ("blk.1.ffn_in.holdout", Some((Type::F32, vec![N_EMBD, 3], vec![0; 12 * N_EMBD]))),
        ("blk.1.ffn_in.holdout", Some((Type::F16, vec![N_EMBD, 2], vec![0; 4 * N_EMBD]))),
        ("blk.1.ffn_in.holdout", Some((Type::F16, vec![N_EMBD, 3], vec![0xff; 6 * N_EMBD]))),
        ("blk.1.ffn_in.holdout_scale", None),
        ("blk.1.ffn_in.holdout_scale", Some(f32s(3, 0.0))),
        ("blk.1.ffn_in.holdout_scale", Some(f32s(3, f32::INFINITY))),
        ("blk.1.ffn_down.samples", None),
        ("blk.1.ffn_down.samples", Some((Type::F16, vec![N_FF - 1, 5], vec![0; 10 * (N_FF - 1)]))),
        ("blk.1.ffn_down.sample_scale", Some(f32s(4, 1.0))),
        ("blk.1.ffn_down.holdout", None),
    ] {
        messages.push(replace(name, with).unwrap_err().to_string());
    }
    for message in messages {
        assert_eq!(message.lines().count(), 1);
        assert!(
            message.contains("calib.gguf: ") && message.contains("statecells-calib"),
            "{message}"
        );
    }
}

#[test]
fn values_that_are_no_moments_are_not_written() {
    let mut bad = inputs();
    let input = bad.get_mut(&InputId { layer: 1, role: InputRole::FfnIn }).unwrap();
    let mut overflow = SecondMoment::new(N_EMBD);
    overflow.add(&[1e30; N_EMBD], &ReferenceMatMul, &mut MomentScratch::default());
    input.fitted = Fitted::Moment(overflow);
    let error = write(&mut Vec::new(), &provenance(), &bad).unwrap_err().to_string();
    assert!(error.starts_with("blk.1.ffn_in: "), "{error}");
}
