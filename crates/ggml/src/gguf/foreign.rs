//! Files that look like what they are not: what a file is, and what to give in its place.
//!
//! People give what they have: checkpoints of other frameworks, files of forks, pointers, pipes. Here is the one place
//! that recognizes them, asked only once a file could not be read.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::{GgufError, scan};
use crate::{Type, imatrix};

/// What a file is, and what to give in its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    what: String,
    instead: String,
}

const COMPLETE: &str = "give a complete GGUF file";
const CONVERT: &str = "convert the original model with llama.cpp's convert_hf_to_gguf.py and give the GGUF file that it \
                       writes";
const CONVERT_OLD: &str = "convert it with llama.cpp's convert_llama_ggml_to_gguf.py, or better the original model with \
                           convert_hf_to_gguf.py, and give the GGUF file that it writes";
const UNPACK: &str = "unpack it and give the GGUF file in it";
const ON_DISK: &str = "models are mapped into memory, so write it to a disk and give that file";
const MODEL: &str = "give the model itself";

/// Formats by the bytes at their start: the bytes, what they say, what to give.
const MAGICS: [(&[u8], &str, &str); 19] = [
    (b"lmgg", "a model in the GGML format that GGUF replaced in 2023", CONVERT_OLD),
    (b"fmgg", "a model in the GGMF format that GGUF replaced in 2023", CONVERT_OLD),
    (b"tjgg", "a model in the GGJT format that GGUF replaced in 2023", CONVERT_OLD),
    (b"algg", "a LoRA adapter in the GGLA format", MODEL),
    (b"nsgg", "a saved session of llama.cpp", MODEL),
    (b"qsgg", "a saved sequence of llama.cpp", MODEL),
    (b"\x89HDF", "weights in the HDF5 format of Keras", CONVERT),
    (b"\x93NUMPY", "an array of numpy", CONVERT),
    (b"\x80\x02", "a Python pickle, as old PyTorch checkpoints are", CONVERT),
    (b"\x80\x03", "a Python pickle, as old PyTorch checkpoints are", CONVERT),
    (b"\x80\x04", "a Python pickle, as old PyTorch checkpoints are", CONVERT),
    (b"\x80\x05", "a Python pickle, as old PyTorch checkpoints are", CONVERT),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x7fELF", "a program", COMPLETE),
];

/// Types of `enum ggml_type` that files of others have and this ggml does not. Forks number theirs apart from those of
/// llama.cpp, which keeps the numbers of removed types free.
const TYPES: [(u32, &str); 34] = [
    (133, "Q6_0"),
    (134, "IQ1_BN"),
    (135, "IQ2_BN"),
    (137, "IQ2_K"),
    (138, "IQ3_K"),
    (139, "IQ4_K"),
    (140, "IQ5_K"),
    (141, "IQ6_K"),
    (144, "IQ4_KS"),
    (145, "IQ2_KS"),
    (146, "IQ4_KSS"),
    (152, "IQ5_KS"),
    (153, "IQ2_KT"),
    (154, "IQ3_KT"),
    (155, "IQ4_KT"),
    (156, "IQ3_KS"),
    (157, "IQ2_KL"),
    (158, "IQ1_KT"),
    (202, "Q4_0_R8"),
    (206, "Q5_0_R4"),
    (208, "Q8_0_R8"),
    (210, "Q2_K_R4"),
    (211, "Q3_K_R4"),
    (212, "Q4_K_R4"),
    (213, "Q5_K_R4"),
    (214, "Q6_K_R4"),
    (220, "IQ4_NL_R4"),
    (223, "IQ4_XS_R8"),
    (233, "Q6_0_R4"),
    (338, "IQ3_K_R4"),
    (339, "IQ4_K_R4"),
    (340, "IQ5_K_R4"),
    (344, "IQ4_KS_R4"),
    (352, "IQ5_KS_R4"),
];

/// Numbers of which ik_llama.cpp takes its own: all that are not those of llama.cpp.
const IK_LLAMA: std::ops::Range<u32> = 96..400;

/// Enough of a file to know a text by.
const TEXT_BYTES: usize = 512;
/// Where a zip archive of PyTorch names its first entry.
const ZIP_BYTES: usize = 1024;
/// So many zeros at its start no file has.
const ZERO_BYTES: usize = 64;

impl Foreign {
    fn new(what: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { what: what.into(), instead: instead.into() }
    }

    fn no_gguf(what: impl std::fmt::Display, instead: impl Into<String>) -> Self {
        Self::new(format!("not a GGUF file ({what})"), instead)
    }

    pub(super) fn at(self, path: &Path) -> GgufError {
        let Self { what, instead } = self;
        GgufError::Foreign { path: path.to_owned(), what, instead }
    }
}

/// What is at `path` if it is no file that can be mapped: to be asked before it is opened, because that may wait for ever.
pub(super) fn not_a_file(path: &Path) -> Option<Foreign> {
    if path == Path::new("-") && !path.exists() {
        return Some(Foreign::no_gguf("the standard input", ON_DISK));
    }
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    if metadata.is_dir() {
        return Some(folder(path));
    }
    let what = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => return None,
    };
    Some(Foreign::no_gguf(what, ON_DISK))
}

fn folder(path: &Path) -> Foreign {
    if path.join("config.json").is_file() {
        return Foreign::no_gguf("the folder of a model for other programs", CONVERT);
    }
    let is_gguf = |p: &PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    if entries.into_iter().any(|p| is_gguf(&p)) {
        return Foreign::no_gguf("a folder", "give the GGUF file in it");
    }
    Foreign::no_gguf("a folder", "give a GGUF file")
}

/// What `file` is, if that is known and it is no GGUF that is only damaged.
pub(super) fn of(file: &[u8]) -> Option<Foreign> {
    if file.starts_with(b"GGUF") {
        version(file).or_else(|| unknown_type(file))
    } else {
        Some(other(file))
    }
}

fn version(file: &[u8]) -> Option<Foreign> {
    let number = u32::from_le_bytes(file.get(4..8)?.try_into().ok()?);
    let instead = match number {
        2 | 3 => return None,
        1 => {
            "it is of August 2023, download a newer file of the model, or convert the original with llama.cpp's \
              convert_hf_to_gguf.py and give the GGUF file that it writes"
        }
        _ if matches!(number.swap_bytes(), 1..=3) => {
            "the file is for big-endian machines, convert it with llama.cpp's gguf_convert_endian.py FILE little, or \
             give the file for little-endian ones"
        }
        _ => "give a file of another version",
    };
    Some(Foreign::new(format!("GGUF version {number} is not supported, only 2 and 3 are"), instead))
}

/// The first tensor of a type that this ggml does not know.
fn unknown_type(file: &[u8]) -> Option<Foreign> {
    let is_unknown = |ty: u32| Type::try_from(ty).is_err();
    let (name, ty) = scan::first_tensor(file, is_unknown)?;
    let (of, instead) = match ty {
        4 | 5 => ("removed from llama.cpp in 2023".to_owned(), CONVERT),
        31..=33 => (
            "Q4_0 repacked for one kind of processor, removed from llama.cpp".to_owned(),
            "give the model's Q4_0 file, which llama.cpp repacks by itself",
        ),
        36..=38 => ("of bitnet.cpp, or removed from llama.cpp".to_owned(), OWN_TYPES),
        _ if IK_LLAMA.contains(&ty) => {
            let known = TYPES.iter().find(|(number, _)| *number == ty);
            (known.map_or("", |(_, name)| *name).to_owned() + " of ik_llama.cpp", OWN_TYPES)
        }
        _ => ("of a newer llama.cpp or of a fork, or damaged".to_owned(), OWN_TYPES),
    };
    let of = of.trim_start();
    let what = format!("tensor '{name}' has type {ty} ({of}), which is no ggml type here");
    Some(Foreign::new(what, instead))
}

const OWN_TYPES: &str = "give a file of the model with llama.cpp's own types, such as Q8_0 or F16";

/// What a file without the magic of GGUF is.
fn other(file: &[u8]) -> Foreign {
    if file.is_empty() {
        return Foreign::no_gguf("it is empty: the download or copy did not begin", COMPLETE);
    }
    if b"GGUF".starts_with(file) {
        let what =
            format!("it ends after {} bytes: the download or copy is not complete", file.len());
        return Foreign::no_gguf(what, COMPLETE);
    }
    if let Some((_, what, instead)) = MAGICS.iter().find(|(magic, ..)| file.starts_with(magic)) {
        return Foreign::no_gguf(what, *instead);
    }
    if file.starts_with(b"PK\x03\x04") {
        return zip(file);
    }
    if file.get(257..262) == Some(b"ustar") {
        return Foreign::no_gguf("a tar archive", UNPACK);
    }
    if is_safetensors(file) {
        return Foreign::no_gguf("weights in the safetensors format", CONVERT);
    }
    if let Some(start) = text(file) {
        return of_text(start);
    }
    if imatrix::is_legacy(file) {
        return Foreign::no_gguf("an importance matrix in the old format of llama-imatrix", MODEL);
    }
    if file.iter().take(ZERO_BYTES).all(|b| *b == 0) {
        let what = "zeros at its start: the download is not complete, or the disk lost it";
        return Foreign::no_gguf(what, COMPLETE);
    }
    let bytes: Vec<String> = file.iter().take(4).map(|b| format!("{b:02x}")).collect();
    Foreign::no_gguf(
        format!("of an unknown kind, its first bytes are {}", bytes.join(" ")),
        COMPLETE,
    )
}

fn zip(file: &[u8]) -> Foreign {
    let start = &file[..file.len().min(ZIP_BYTES)];
    if start.windows(8).any(|w| w == b"data.pkl") {
        return Foreign::no_gguf("a PyTorch checkpoint", CONVERT);
    }
    Foreign::no_gguf("a zip archive", UNPACK)
}

/// The length of the header, and the header as JSON.
fn is_safetensors(file: &[u8]) -> bool {
    let n = file.first_chunk().map(|n| u64::from_le_bytes(*n));
    file.get(8) == Some(&b'{') && n.is_some_and(|n| (2..1 << 32).contains(&n))
}

/// The start of a file that holds text.
fn text(file: &[u8]) -> Option<&str> {
    let start = &file[..file.len().min(TEXT_BYTES)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut in the middle of a character.
        Err(e) if start.len() - e.valid_up_to() < 4 && file.len() > start.len() => {
            std::str::from_utf8(&start[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_binary = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    (!text.contains(is_binary)).then_some(text)
}

fn of_text(start: &str) -> Foreign {
    let lower = start.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if lower.starts_with("version https://git-lfs") {
        let size =
            lower.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
        let size = size.map_or_else(String::new, |n| format!(" to a file of {n} bytes"));
        let instead = "fetch the file itself, for example by git lfs pull, and give that";
        return Foreign::no_gguf(format!("a Git LFS pointer{size}"), instead);
    }
    if lower.starts_with("<!doctype") || lower.starts_with("<html") {
        let instead = "download the file itself, not the page about it, and give that";
        return Foreign::no_gguf("a web page", instead);
    }
    let what = if lower.starts_with(['{', '[']) { "a text in JSON" } else { "a text" };
    Foreign::no_gguf(what, COMPLETE)
}
