//! Mapped memory and the metadata in it.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

use super::context::Context;
use super::tensor::{TensorInfo, tensor_info};
use super::{GgufError, foreign, scan};

/// The one door to mapped memory.
///
/// # Errors
/// [`GgufError::Open`], or [`GgufError::Foreign`] for what is no file.
pub(crate) fn map(path: &Path) -> Result<Mmap, GgufError> {
    if let Some(foreign) = foreign::not_a_file(path) {
        return Err(foreign.at(path));
    }
    let mapped = File::open(path).and_then(|file| map_file(&file));
    mapped.map_err(|cause| GgufError::Open { path: path.to_owned(), cause })
}

fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapped bytes count as immutable, so nobody may change the file meanwhile. Nothing in the
    // process does: outputs are written under other names and renamed. What other processes do is the
    // user's duty, as stated for `GgufFile::open`.
    unsafe { Mmap::map(file) }
}

/// Parses the metadata in the mapped file at `path`, the part with this number, from 0.
pub(super) fn read(
    map: &Mmap,
    path: &Path,
    part: usize,
) -> Result<(Context, Vec<TensorInfo>), GgufError> {
    parse(map, part).map_err(|reason| match foreign::of(map) {
        Some(foreign) => foreign.at(path),
        None => GgufError::Malformed { path: path.to_owned(), reason },
    })
}

/// Parses the metadata in `bytes`, which are those of the part with this number, from 0, and checks it again; the
/// error is one line.
pub(super) fn parse(bytes: &[u8], part: usize) -> Result<(Context, Vec<TensorInfo>), String> {
    scan::check(bytes)?;
    let context = Context::parse(bytes).map_err(explain)?;
    let tensors = (0..context.n_tensors())
        .map(|id| tensor_info(&context, id, part, bytes.len()))
        .collect::<Result<_, _>>()?;
    Ok((context, tensors))
}

/// ggml's message for files without the data, in words of the file.
fn explain(message: String) -> String {
    match &*message {
        "failed to seek to beginning of data section" => {
            "the tensors' data are not there (truncated or damaged)".to_owned()
        }
        _ => message,
    }
}
