//! Checks of what is to be written, before the long work.

use std::path::Path;

use crate::{Error, files, io};

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

/// Checks that `output` can be made in its folder, under its name, and is nothing that could not be replaced.
///
/// # Errors
/// [`Error::Io`].
pub fn check_output(output: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Err(io(output, "write")(std::io::Error::other(reason)));
    if output == Path::new("-") {
        return refuse(
            "the standard output cannot be put in place once it is complete: name a file (./- for one of this name)",
        );
    }
    // What the path leads to, and what stands there itself: a name that is too long is an error of both.
    match output.metadata().or_else(|_| output.symlink_metadata()) {
        Ok(found) if found.is_dir() => {
            return Err(io(output, "write")(std::io::ErrorKind::IsADirectory.into()));
        }
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            return refuse("it is no regular file: choose another path");
        }
        Ok(_) if is_mount_point(output) => {
            return refuse("it is a mount point, which nothing can replace: mount its folder");
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(output, "write")(e)),
        _ => {}
    }
    files::check_writable(files::parent(output))
}

/// Whether a file system begins at `path`, as where a single file is handed to a container.
fn is_mount_point(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
        found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

/// Checks that nothing stands in the place of `output`, which is written because of `flag`, unless it may be replaced.
///
/// # Errors
/// [`Error::Flag`] if something does.
pub fn check_absent(flag: &'static str, output: &Path, replaces: bool) -> Result<(), Error> {
    if replaces || output.symlink_metadata().is_err() {
        return Ok(());
    }
    let reason = format!("{} already exists: --force replaces it", output.display());
    Err(Error::Flag { flag, reason })
}

/// Checks that the file system of `output` takes a file of about `output_bytes` and has room for `needed_bytes`, that
/// file among them.
///
/// # Errors
/// [`Error::NoRoom`] or [`Error::FileLimit`], or [`Error::Io`] if the file system does not say.
pub fn check_space(output: &Path, output_bytes: u64, needed_bytes: u64) -> Result<(), Error> {
    let folder = files::parent(output);
    let needed_bytes = needed_bytes.saturating_add(MARGIN_BYTES);
    let stat =
        rustix::fs::statvfs(folder).map_err(|e| io(folder, "look for free space")(e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes < needed_bytes {
        return Err(Error::NoRoom { path: folder.to_owned(), needed_bytes, free_bytes });
    }
    check_file_size(folder, output_bytes)
}

/// The limits that files in a folder may have, each with what it is and the way out.
fn file_limits(folder: &Path) -> Vec<(u64, &'static str, &'static str)> {
    let mut limits = Vec::new();
    if let Some(bytes) = rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        limits.push((bytes, "a limit of this process (ulimit -f)", "lift it"));
    }
    #[cfg(target_os = "linux")]
    {
        /// `f_type` of FAT, see statfs(2).
        const MSDOS_SUPER_MAGIC: u64 = 0x4d44;
        #[allow(clippy::unnecessary_cast, reason = "another type elsewhere")]
        let kind = rustix::fs::statfs(folder).map(|s| s.f_type as u64);
        if kind == Ok(MSDOS_SUPER_MAGIC) {
            limits.push((u64::from(u32::MAX), "FAT", "choose an -o on another file system"));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
    limits
}

fn check_file_size(folder: &Path, needed_bytes: u64) -> Result<(), Error> {
    match file_limits(folder).into_iter().find(|(bytes, ..)| *bytes < needed_bytes) {
        None => Ok(()),
        Some((limit_bytes, limit, way_out)) => {
            let path = folder.to_owned();
            Err(Error::FileLimit { path, needed_bytes, limit, limit_bytes, way_out })
        }
    }
}
