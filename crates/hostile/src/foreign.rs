//! Files that people give by mistake: no GGUF, or one that others made for themselves. Each line of a reader says what
//! the file is and what to give in its place.

use crate::Case;
use crate::gguf::Gguf;
use crate::good;

const CONVERT: &str = "convert_hf_to_gguf.py";
const UNPACK: &str = "unpack it";
const COMPLETE: &str = "complete GGUF";

/// Files that stand in the place of a model.
#[must_use]
pub fn foreign() -> Vec<Case> {
    [formats(), texts(), incomplete(), ggufs()].concat()
}

fn case(name: &str, start: &[u8], says: &[&'static str]) -> Case {
    let mut bytes = start.to_vec();
    bytes.resize(start.len() + 600, 0xa5);
    Case::new(format!("foreign: {name}"), bytes, says)
}

fn formats() -> Vec<Case> {
    let mut tar = vec![b'm'; 257];
    tar.extend(b"ustar\0");
    let header = br#"{"weight":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#;
    let safetensors = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    let zip = |name: &str| [b"PK\x03\x04".as_slice(), &[0; 26], name.as_bytes()].concat();
    vec![
        case("safetensors", &safetensors, &["safetensors", CONVERT]),
        case("a PyTorch checkpoint", &zip("archive/data.pkl"), &["PyTorch", CONVERT]),
        case("another zip archive", &zip("model.gguf"), &["zip archive", UNPACK]),
        case("an old PyTorch checkpoint", b"\x80\x02\x8a\x0al\xfc\x9cF", &["pickle", CONVERT]),
        case("HDF5", b"\x89HDF\r\n\x1a\n", &["HDF5", CONVERT]),
        case("a numpy array", b"\x93NUMPY\x01\0", &["numpy", CONVERT]),
        case("GGML", b"lmgg\0\x7d\0\0", &["GGML", "convert_llama_ggml_to_gguf.py"]),
        case("GGMF", b"fmgg\x01\0\0\0", &["GGMF", "convert_llama_ggml_to_gguf.py"]),
        case("GGJT", b"tjgg\x03\0\0\0", &["GGJT", "convert_llama_ggml_to_gguf.py"]),
        case("an old LoRA", b"algg\x01\0\0\0", &["LoRA", "model itself"]),
        case("a saved session", b"nsgg\x09\0\0\0", &["session", "model itself"]),
        case("a saved sequence", b"qsgg\x02\0\0\0", &["sequence", "model itself"]),
        case("gzip", b"\x1f\x8b\x08\0", &["gzip", UNPACK]),
        case("bzip2", b"BZh91AY", &["bzip2", UNPACK]),
        case("xz", b"\xfd7zXZ\0", &["xz", UNPACK]),
        case("zstd", b"\x28\xb5\x2f\xfd", &["zstd", UNPACK]),
        case("7z", b"7z\xbc\xaf\x27\x1c", &["7z", UNPACK]),
        case("tar", &tar, &["tar archive", UNPACK]),
        case("a program", b"\x7fELF\x02\x01\x01\0", &["a program", COMPLETE]),
        case("noise", b"\xde\xad\xbe\xef", &["de ad be ef", COMPLETE]),
        Case::new(
            "foreign: an old imatrix",
            good::old_imatrix(),
            &["importance matrix", "model itself"],
        ),
    ]
}

fn texts() -> Vec<Case> {
    let text = |name: &str, text: &str, says: &[&'static str]| {
        Case::new(format!("foreign: {name}"), text.as_bytes().to_vec(), says)
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4920734272\n";
    // A character of two bytes across the end of what is looked at.
    let long = format!("a{}", "\u{e4}".repeat(400));
    vec![
        text(
            "a Git LFS pointer",
            pointer,
            &["Git LFS pointer", "4920734272 bytes", "git lfs pull"],
        ),
        text("a web page", "\n<!DOCTYPE html><html lang=\"en\">", &["web page", "download"]),
        text("JSON", "{\"error\": \"Repository not found\"}", &["JSON", COMPLETE]),
        text("a text", "Entry not found", &["a text", COMPLETE]),
        text("a long text", &long, &["a text", COMPLETE]),
    ]
}

fn incomplete() -> Vec<Case> {
    let zeros = Case::new("foreign: zeros", vec![0; 4096], &["zeros", COMPLETE]);
    let cut = Case::new("foreign: three bytes", b"GGU".to_vec(), &["ends after 3 bytes", COMPLETE]);
    let empty = Case::new("foreign: nothing", Vec::new(), &["empty", COMPLETE]);
    vec![zeros, cut, empty]
}

/// GGUF files, but not of llama.cpp as it is today.
fn ggufs() -> Vec<Case> {
    let changed = |name: &str, says: &[&'static str], change: &dyn Fn(&mut Gguf)| {
        let mut file = good::model();
        change(&mut file);
        Case::of(format!("foreign: {name}"), &file, says)
    };
    let up = "blk.0.ffn_up.weight";
    let ty = |name: &str, number: u32, says: &[&'static str]| {
        let says = [&[up], says].concat();
        changed(name, &says, &|f| f.tensor(up).ty = number)
    };
    vec![
        changed("version 1", &["version 1 ", "2023", CONVERT], &|f| f.version = 1),
        changed("big endian", &["big-endian", "gguf_convert_endian.py"], &|f| {
            f.version = 3u32.swap_bytes();
        }),
        ty("IQ4_KS of ik_llama.cpp", 144, &["144 (IQ4_KS of ik_llama.cpp)", "Q8_0 or F16"]),
        ty("another type of ik_llama.cpp", 150, &["150 (of ik_llama.cpp)", "Q8_0 or F16"]),
        ty("I2_S of bitnet.cpp", 36, &["36", "bitnet.cpp", "Q8_0 or F16"]),
        ty("Q4_0_8_8", 33, &["33", "removed", "Q4_0 file"]),
        ty("Q4_2", 4, &["type 4", "removed", CONVERT]),
        ty("a type of tomorrow", 77, &["77", "newer llama.cpp", "Q8_0 or F16"]),
    ]
}
