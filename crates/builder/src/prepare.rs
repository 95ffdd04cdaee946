//! Checks before the long work, so that it does not fail at its end.

use std::path::Path;

use codec::check_finite;

use crate::error::io;
use crate::{Error, Interrupt, Plan, Reporter, Source, files};

/// Room beyond the estimate that must be free: metadata, records and rounding.
const MARGIN_BYTES: u64 = 16 << 20;

/// Checks that no file to be written is one to be read, or another one to be written. Each file comes
/// with its flag, those to be read first.
///
/// # Errors
/// [`Error::SameFile`].
pub fn check_distinct(
    read: &[(&'static str, &Path)],
    written: &[(&'static str, &Path)],
) -> Result<(), Error> {
    for (i, (second, path)) in written.iter().enumerate() {
        for (first, other) in read.iter().chain(&written[..i]) {
            if files::same_file(other, path) {
                return Err(Error::SameFile { first, second, path: path.to_path_buf() });
            }
        }
    }
    Ok(())
}

/// Checks that `output` can be made in its folder and names no folder itself.
///
/// # Errors
/// [`Error::Io`].
pub fn check_output(output: &Path) -> Result<(), Error> {
    if output.is_dir() {
        return Err(io(output, "write")(std::io::ErrorKind::IsADirectory.into()));
    }
    if output.exists() && !output.is_file() {
        let reason = std::io::Error::other("it is no regular file: choose another path");
        return Err(io(output, "write")(reason));
    }
    files::check_writable(files::parent(output))
}

/// Checks that the folder of `output` has room for the checkpoints and the output of `plan`.
///
/// # Errors
/// [`Error::NoRoom`], or [`Error::Io`] if the file system does not say.
pub fn check_room(
    output: &Path,
    source: &Source,
    plan: &Plan,
    keep_dense: bool,
) -> Result<(), Error> {
    let totals = plan.totals();
    let replaced = if keep_dense { 0 } else { totals.source_bytes };
    let output_bytes = source.n_bytes().saturating_sub(replaced) + totals.coded_bytes;
    let needed_bytes = output_bytes + totals.coded_bytes + MARGIN_BYTES;
    let folder = files::parent(output);
    let stat =
        rustix::fs::statvfs(folder).map_err(|e| io(folder, "look for free space")(e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::NoRoom { path: folder.to_owned(), needed_bytes, free_bytes })
}

/// Checks that every weight of the plan is finite: a damaged model is refused in seconds, not after hours.
///
/// # Errors
/// [`Error::Codec`] with the tensor and the position, or [`Error::Stopped`].
pub fn check_weights(
    source: &Source,
    plan: &Plan,
    reporter: &Reporter,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let stage = reporter.bytes("checking the weights", plan.totals().source_bytes);
    for item in &plan.items {
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        let info = source.info(item.tensor);
        let weights = source.file().to_f32(info)?;
        source.file().release(info);
        check_finite(&weights, item.shape)
            .map_err(|source| Error::Codec { tensor: item.tensor.weight(), source })?;
        stage.advance(item.source_bytes);
    }
    Ok(())
}
