//! Files made as bytes, damaged in every way, and round trips through real files.

use std::io::Write;
use std::path::Path;

use super::context::Context;
use super::*;
use crate::Type;

fn parse(bytes: &[u8]) -> Result<(Context, Vec<TensorInfo>), String> {
    super::mapped::parse(bytes, 0)
}

/// Writes GGUF by hand, so that reader and writer are tested against the format and not each other.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(n_tensors: u64, n_keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_keys)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, v: u32) -> Self {
        self.raw(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Self {
        self.raw(&v.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    fn key_u32(self, key: &str, v: u32) -> Self {
        self.text(key).u32(4).u32(v)
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let with_dims = dims.iter().fold(self.text(name).u32(dims.len() as u32), |s, &d| s.u64(d));
        with_dims.u32(ty).u64(offset)
    }

    fn pad(mut self, alignment: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }
}

/// Two tensors: `a` is F32 [4, 2], `b` is Q8_0 [32].
fn small_file() -> Vec<u8> {
    Bytes::header(2, 3)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .key_u32("general.alignment", 32)
        .text("tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("x")
        .text("")
        .tensor("a", &[4, 2], 0, 0)
        .tensor("b", &[32], 8, 32)
        .pad(32)
        .raw(&[1; 32])
        .raw(&[2; 34])
        .0
}

fn reason(bytes: &[u8]) -> String {
    let reason = parse(bytes).expect_err("a damaged file was accepted");
    assert!(!reason.contains('\n') && !reason.is_empty(), "{reason:?}");
    reason
}

fn assert_refused(bytes: &Bytes, expected: &str) {
    let reason = reason(&bytes.0);
    assert!(reason.contains(expected), "'{reason}' should say '{expected}'");
}

#[test]
fn a_good_file_is_read_as_it_is() {
    let (_, tensors) = parse(&small_file()).unwrap();
    let found: Vec<_> = tensors.iter().map(|t| (t.name(), t.ty(), t.dims(), t.n_bytes())).collect();
    assert_eq!(
        found,
        [("a", Type::F32, &[4usize, 2][..], 32), ("b", Type::Q8_0, &[32usize][..], 34)]
    );
}

#[test]
fn truncated_at_any_byte_is_refused() {
    let bytes = small_file();
    for n in 0..bytes.len() {
        reason(&bytes[..n]);
    }
}

#[test]
fn any_single_damaged_byte_of_the_metadata_is_survived() {
    let bytes = small_file();
    for position in 0..bytes.len() - 66 {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            if let Ok((context, tensors)) = parse(&damaged) {
                assert!(tensors.iter().all(|t| t.offset() + t.n_bytes() <= damaged.len()));
                assert!(context.keys().iter().all(|k| context.value(k).is_some()));
            }
        }
    }
}

#[test]
fn wild_numbers_anywhere_in_the_metadata_are_survived() {
    let bytes = small_file();
    let wild =
        [0, 1, 31, 1 << 31, 1 << 32, 1 << 62, (1 << 62) + 2, i64::MAX as u64, 1 << 63, u64::MAX];
    for position in 4..bytes.len() - 66 - 8 {
        for value in wild {
            let mut damaged = bytes.clone();
            damaged[position..position + 8].copy_from_slice(&value.to_le_bytes());
            if let Ok((_, tensors)) = parse(&damaged) {
                assert!(tensors.iter().all(|t| t.offset() + t.n_bytes() <= damaged.len()));
            }
        }
    }
}

#[test]
fn rejects_other_files() {
    assert_eq!(reason(b""), "not a GGUF file");
    assert_eq!(reason(b"PK\x03\x04 something long enough to hold a header"), "not a GGUF file");
    let versions = [0, 1, 4, 3u32.swap_bytes()];
    for version in versions {
        let bytes = Bytes(b"GGUF".to_vec()).u32(version).u64(0).u64(0);
        assert_refused(&bytes, "is not supported");
    }
}

#[test]
fn rejects_counts_that_the_file_cannot_hold() {
    for n in [2, 1 << 20, 1 << 40, i64::MAX as u64, u64::MAX] {
        assert_refused(&Bytes::header(0, n).key_u32("a", 1), "");
        assert_refused(&Bytes::header(n, 0).tensor("a", &[1], 0, 0).pad(32).raw(&[0; 4]), "");
        assert_refused(&Bytes::header(0, 1).u64(n), "");
        assert_refused(&Bytes::header(0, 1).text("k").u32(8).u64(n), "'k'");
        assert_refused(&Bytes::header(0, 1).text("k").u32(9).u32(8).u64(n), "'k'");
        assert_refused(&Bytes::header(0, 1).text("k").u32(9).u32(12).u64(n), "'k'");
    }
}

#[test]
fn rejects_oversized_metadata_without_parsing_it() {
    let n = 300u64 << 20;
    let mut bytes = Bytes::header(0, 1).text("k").u32(9).u32(0).u64(n).0;
    bytes.resize(bytes.len() + n as usize, 0);
    assert!(reason(&bytes).contains("metadata of more than"), "{}", reason(&bytes));
}

#[test]
fn rejects_bad_keys() {
    assert_refused(&Bytes::header(0, 1).key_u32("", 1), "empty");
    assert_refused(&Bytes::header(0, 2).key_u32("k", 1).key_u32("k", 2), "duplicate key 'k'");
    assert_refused(&Bytes::header(0, 1).key_u32("a\0b", 1), "not a text");
    assert_refused(&Bytes::header(0, 1).u64(1).raw(&[0xff]).u32(4).u32(0), "not a text");
    assert_refused(&Bytes::header(0, 1).text("k").u32(99).u32(0), "no type of a value");
    assert_refused(&Bytes::header(0, 1).text("k").u32(9).u32(9).u64(0), "no type of a value");
    assert_refused(&Bytes::header(0, 1).key_u32("general.alignment", 0), "power of 2");
    assert_refused(&Bytes::header(0, 1).key_u32("general.alignment", 48), "power of 2");
    assert_refused(
        &Bytes::header(0, 1).text("general.alignment").u32(10).u64(32),
        "must be of type u32",
    );
}

#[test]
fn rejects_bad_tensors() {
    let one = |name: &str, dims: &[u64], ty, offset| {
        Bytes::header(1, 0).tensor(name, dims, ty, offset).pad(32).raw(&[0; 256])
    };
    parse(&one("t", &[64], 0, 0).0).unwrap();
    assert_refused(&one("t", &[65], 0, 0), "ends at byte");
    assert_refused(&one("t", &[64], 0, 32), "offset");
    assert_refused(&one("t", &[64], 4, 0), "block size");
    assert_refused(&one("t", &[64], 12345, 0), "invalid ggml type");
    assert_refused(&one("t", &[63], 8, 0), "block size");
    assert_refused(&one("t", &[1; 5], 0, 0), "dimensions");
    assert_refused(&one("t", &[u64::MAX], 0, 0), "t");
    assert_refused(&one("t", &[1 << 62, 4], 0, 0), "t");
    // 2^62 blocks times 18 bytes wraps to 0 in ggml's arithmetic.
    assert_refused(&one("t", &[1 << 62], 2, 0), "t");
    assert_refused(&one(&"n".repeat(64), &[64], 0, 0), "too long");
    assert_refused(&one("t\0u", &[64], 0, 0), "not a text");
    let twice = Bytes::header(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32);
    assert_refused(&twice.pad(32).raw(&[0; 64]), "duplicate tensor name 't'");
}

#[test]
fn empty_tensors_and_missing_padding_at_the_end_are_fine() {
    let bytes = Bytes::header(2, 0).tensor("e", &[0, 7], 0, 0).tensor("t", &[1], 0, 0);
    let (_, tensors) = parse(&bytes.pad(32).raw(&[0; 4]).0).unwrap();
    assert_eq!((tensors[0].n_bytes(), tensors[1].n_bytes()), (0, 4));
}

fn write_file(path: &Path, writer: &GgufWriter, data: &[Vec<u8>]) {
    let mut file = std::fs::File::create(path).unwrap();
    writer.write(&mut file, |i, out| out.write_all(&data[i])).unwrap();
    assert_eq!(file.metadata().unwrap().len(), writer.total_bytes());
}

fn all_values() -> Vec<(&'static str, Value)> {
    vec![
        ("u8", 200u8.into()),
        ("i8", (-100i8).into()),
        ("u16", 60000u16.into()),
        ("i16", (-30000i16).into()),
        ("u32", 4_000_000_000u32.into()),
        ("i32", (-2_000_000_000i32).into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", 1.5f32.into()),
        ("f64", 1e300f64.into()),
        ("bool", true.into()),
        ("text", "zwölf".into()),
        ("u8s", vec![1u8, 2].into()),
        ("i8s", vec![-1i8].into()),
        ("u16s", vec![1u16, 65535].into()),
        ("i16s", vec![-1i16].into()),
        ("u32s", vec![7u32].into()),
        ("i32s", vec![-7i32, 7].into()),
        ("u64s", vec![u64::MAX].into()),
        ("i64s", vec![-1i64].into()),
        ("f32s", vec![0.25f32, -1.0].into()),
        ("f64s", vec![0.1f64].into()),
        ("bools", vec![true, false, true].into()),
        ("texts", vec!["a".to_owned(), String::new(), "ü".to_owned()].into()),
        ("none", Vec::<f32>::new().into()),
        ("no texts", Vec::<String>::new().into()),
    ]
}

#[test]
fn what_is_written_is_read_back() {
    let mut writer = GgufWriter::new();
    for (key, value) in all_values() {
        writer.set(key, value).unwrap();
    }
    let shapes: [(&str, Type, &[usize]); 6] = [
        ("one", Type::F32, &[3]),
        ("codes", Type::I16, &[5, 7]),
        ("bytes", Type::I8, &[33]),
        ("dict", Type::F16, &[8, 16, 3]),
        ("four", Type::Q8_0, &[64, 2, 3, 2]),
        ("empty", Type::F32, &[0]),
    ];
    let mut data = Vec::new();
    for (i, (name, ty, dims)) in shapes.into_iter().enumerate() {
        writer.add_tensor(name, ty, dims).unwrap();
        data.push(vec![i as u8 + 1; ty.tensor_bytes(dims).unwrap()]);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.gguf");
    write_file(&path, &writer, &data);

    let file = GgufFile::open(&path).unwrap();
    let keys: Vec<_> = all_values().iter().map(|(k, _)| (*k).to_owned()).collect();
    assert_eq!(file.keys(), keys);
    for (key, value) in all_values() {
        assert_eq!(file.value(key), Some(value), "{key}");
    }
    for (tensor, (shape, data)) in file.tensors().iter().zip(shapes.iter().zip(&data)) {
        assert_eq!((tensor.name(), tensor.ty(), tensor.dims()), *shape);
        assert_eq!(file.data(tensor), data);
        assert!(tensor.offset().is_multiple_of(file.alignment()));
        file.release(tensor);
        assert_eq!(file.data(tensor), data, "released pages come back");
    }
    assert_eq!(file.tensors().len(), shapes.len());
}

/// Resident memory of mapped files in kB.
#[cfg(target_os = "linux")]
fn resident_file_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn released_tensors_give_their_memory_back() {
    const N_BYTES: usize = 64 << 20;
    let mut writer = GgufWriter::new();
    writer.add_tensor("big", Type::I8, &[N_BYTES]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.gguf");
    write_file(&path, &writer, &[vec![1; N_BYTES]]);
    let file = GgufFile::open(&path).unwrap();
    let tensor = &file.tensors()[0];
    let before = resident_file_kb();
    assert_eq!(file.data(tensor).iter().map(|&b| usize::from(b)).sum::<usize>(), N_BYTES);
    let touched = resident_file_kb();
    assert!(touched > before + 48 * 1024, "{before} {touched}");
    file.release(tensor);
    let released = resident_file_kb();
    assert!(released + 48 * 1024 < touched, "{touched} {released}");
}

#[test]
fn getters_convert_and_name_what_is_wrong() {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama").unwrap();
    writer.set("n", 7i64).unwrap();
    writer.set("negative", -7i32).unwrap();
    writer.set("x", 0.5f32).unwrap();
    writer.set("flag", false).unwrap();
    writer.add_tensor("codes", Type::I8, &[4]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.gguf");
    write_file(&path, &writer, &[vec![0; 4]]);
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.architecture().unwrap(), "llama");
    assert_eq!(file.u32("n").unwrap(), Some(7));
    assert_eq!(file.f32("x").unwrap(), Some(0.5));
    assert_eq!(file.bool("flag").unwrap(), Some(false));
    assert_eq!(file.string("missing").unwrap(), None);
    let error = file.u32("negative").unwrap_err().to_string();
    assert!(error.ends_with("keys.gguf: metadata key 'negative' is i32, expected u32"), "{error}");
    let error = file.require_tensor("absent").unwrap_err().to_string();
    assert!(error.ends_with("keys.gguf: no tensor 'absent'"), "{error}");
    let error = file.to_f32(file.tensor("codes").unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("tensor 'codes': i8 cannot be converted to F32"), "{error}");
}

#[test]
fn open_errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.gguf");
    assert!(matches!(GgufFile::open(&missing), Err(GgufError::Open { .. })));
    assert!(matches!(GgufFile::open(dir.path()), Err(GgufError::Foreign { .. })));
    let path = dir.path().join("empty.gguf");
    std::fs::File::create(&path).unwrap();
    let error = GgufFile::open(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}: not a GGUF file (it is empty", path.display())),
        "{error}"
    );
}

#[test]
fn metadata_is_copied_but_for_what_describes_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source.gguf");
    let bytes = Bytes::header(0, 4)
        .key_u32("general.alignment", 64)
        .key_u32("split.no", 2)
        .key_u32("kept", 5)
        .key_u32("filtered", 6);
    std::fs::File::create(&path).unwrap().write_all(&bytes.0).unwrap();
    let source = GgufFile::open(&path).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata_from(&source, |key| key != "filtered");
    assert_eq!(writer.value("kept"), Some(Value::U32(5)));
    for key in ["general.alignment", "split.no", "filtered"] {
        assert_eq!(writer.value(key), None, "{key}");
    }
    writer.remove("kept");
    assert_eq!(writer.value("kept"), None);
}

#[test]
fn writer_refuses_what_ggml_would_abort_on() {
    let mut writer = GgufWriter::new();
    for key in ["", "a\0b", "general.alignment"] {
        assert!(matches!(writer.set(key, 1u32), Err(WriteError::Key { .. })), "{key:?}");
    }
    assert!(matches!(writer.set("k", "a\0b"), Err(WriteError::Key { .. })));
    writer.add_tensor("t", Type::F32, &[1]).unwrap();
    for name in ["t", "", "a\0b", &"n".repeat(64)] {
        let result = writer.add_tensor(name, Type::F32, &[1]);
        assert!(matches!(result, Err(WriteError::Name { .. })), "{name:?}");
    }
    let wild: [(Type, &[usize]); 6] = [
        (Type::Q8_0, &[31]),
        (Type::F32, &[]),
        (Type::F32, &[1; 5]),
        (Type::F32, &[usize::MAX]),
        (Type::F32, &[1 << 31, 1 << 31, 1 << 31]),
        (Type::F32, &[0, 1 << 62, 1 << 62]),
    ];
    for (ty, dims) in wild {
        let result = writer.add_tensor("u", ty, dims);
        assert!(matches!(result, Err(WriteError::Dims { .. })), "{dims:?}");
    }
}

#[test]
fn writer_counts_the_data() {
    let mut writer = GgufWriter::new();
    writer.add_tensor("t", Type::F32, &[2]).unwrap();
    for n in [0usize, 7, 9, 100] {
        let result = writer.write(Vec::new(), |_, out| out.write_all(&vec![0; n]));
        assert!(matches!(result, Err(WriteError::DataSize { expected: 8, .. })), "{n} {result:?}");
    }
    let result = writer.write(Vec::new(), |_, _| Err(std::io::Error::other("disk full")));
    assert_eq!(result.unwrap_err().to_string(), "disk full");
    let in_pieces = writer.write(Vec::new(), |_, out| {
        out.write_all(&[0; 3])?;
        out.write_all(&[0; 5])
    });
    in_pieces.unwrap();
}

#[test]
fn values_convert_on_all_threads_as_one_by_one() {
    let values: Vec<f32> = (0..64 * 37).map(|i| ((i % 97) as f32 - 48.0) / 7.0).collect();
    let data = Type::Q5_1.quantize(&values, 64, None).unwrap();
    let mut writer = GgufWriter::new();
    writer.add_tensor("t", Type::Q5_1, &[64, 37]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    write_file(&path, &writer, std::slice::from_ref(&data));
    let file = GgufFile::open(&path).unwrap();
    let mut plain = vec![0.0; values.len()];
    Type::Q5_1.to_float(&data, &mut plain).unwrap();
    assert_eq!(file.to_f32(&file.tensors()[0]).unwrap(), plain);
}
