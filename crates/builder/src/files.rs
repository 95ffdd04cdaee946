//! Files that appear under their final name only when they are complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::error::io;

/// Bytes read at once while hashing: large enough to be fast, small enough for any memory limit.
const HASH_BLOCK_BYTES: usize = 1 << 20;

/// Folder that holds `path`.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The path in the folder of `path` whose name is that of `path` and `suffix`.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Longest name in most file systems, in bytes.
const NAME_BYTES: usize = 255;

/// A path beside `path` for what is not complete yet. It is no longer than names may be, whatever the name of `path`.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    let suffix = format!(".{}.tmp", std::process::id());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut end = name.len().min(NAME_BYTES - suffix.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    path.with_file_name(format!("{}{suffix}", &name[..end]))
}

/// Makes what was written to `file` last through a power failure, as far as its file system can.
///
/// # Errors
/// Those of the system, but for those that say that this file cannot be flushed at all.
pub fn sync(file: &File) -> std::io::Result<()> {
    match file.sync_all() {
        Err(e) if cannot_sync(&e) => Ok(()),
        done => done,
    }
}

/// Whether a file system has no such operation, as CIFS, FUSE and drives under WSL have none for folders.
fn cannot_sync(error: &std::io::Error) -> bool {
    let unknown =
        [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP, libc::ENOTTY, libc::EBADF];
    error.raw_os_error().is_some_and(|code| unknown.contains(&code))
}

/// Makes a rename inside `folder` last through a power failure, as far as its file system can.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    let opened = match File::open(folder) {
        // Whoever may write in a folder need not be allowed to read it.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened,
    };
    opened.and_then(|f| sync(&f)).map_err(io(folder, "flush the folder"))
}

/// Moves the complete file `from` to `to` in the same file system, lastingly.
///
/// # Errors
/// [`Error::Io`].
pub fn publish(from: &Path, to: &Path) -> Result<(), Error> {
    File::open(from).and_then(|f| sync(&f)).map_err(io(from, "flush"))?;
    fs::rename(from, to).map_err(io(to, "put the finished file in place"))?;
    sync_folder(parent(to))
}

/// Writes a small file in one step: `path` holds either its old content or all of `bytes`.
///
/// # Errors
/// [`Error::Io`]; nothing is left behind then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = temporary(path);
    let written = File::create(&temporary)
        .and_then(|mut f| f.write_all(bytes))
        .map_err(io(path, "write"))
        .and_then(|()| publish(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Checks that a file can be made in `folder`, before hours of work depend on it.
///
/// # Errors
/// [`Error::Io`].
pub fn check_writable(folder: &Path) -> Result<(), Error> {
    // Without a name, so that nothing stays behind whenever the program is killed.
    tempfile::tempfile_in(folder).map(drop).map_err(io(folder, "write in this folder"))
}

/// Whether both paths lead to one file, through links of any kind.
#[must_use]
pub fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    // One of them does not exist yet: compare where it would be.
    matches!((absolute(a), absolute(b)), (Some(a), Some(b)) if a == b)
}

/// Where `path` is or would be, links in its folder resolved.
fn absolute(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(parent(path)).ok()?.join(path.file_name()?))
}

/// Lower-case hexadecimal form of a hash.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of everything `reader` still gives, as hexadecimal; `advance` is told the bytes read.
///
/// Plain reads, no mapping: the pages of a large model would otherwise count as this program's memory.
///
/// # Errors
/// Those of the reader, and whatever `advance` returns.
pub fn sha256(
    reader: &mut impl Read,
    mut advance: impl FnMut(u64) -> std::io::Result<()>,
) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    add_to_hash(&mut hash, reader, &mut advance)?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of the files at `paths` as if they were one, the next behind the last; `advance` is told the bytes read.
///
/// # Errors
/// [`Error::Io`] with the file, also for what `advance` returns.
pub fn sha256_of_files<'a>(
    paths: impl IntoIterator<Item = &'a Path>,
    mut advance: impl FnMut(u64) -> std::io::Result<()>,
) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for path in paths {
        File::open(path)
            .and_then(|mut file| add_to_hash(&mut hash, &mut file, &mut advance))
            .map_err(io(path, "read"))?;
    }
    Ok(hex(&hash.finalize()))
}

fn add_to_hash(
    hash: &mut Sha256,
    reader: &mut impl Read,
    advance: &mut impl FnMut(u64) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut block = vec![0; HASH_BLOCK_BYTES];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                hash.update(&block[..n]);
                advance(n as u64)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "x").unwrap();
        fs::write(at("b"), "x").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("soft")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("folder")).unwrap();
        assert!(same_file(&at("a"), &at("hard")) && same_file(&at("soft"), &at("a")));
        assert!(same_file(&at("folder").join("new"), &at("new")));
        assert!(!same_file(&at("a"), &at("b")) && !same_file(&at("a"), &at("new")));
    }

    #[test]
    fn the_longest_name_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "\u{e4}".repeat(127)] {
            let path = dir.path().join(name);
            write_atomically(&path, b"text").unwrap();
            assert!(path.is_file());
            assert_ne!(temporary(&path), path);
        }
        assert!(write_atomically(&dir.path().join("x".repeat(256)), b"text").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_flushed_is_left_and_what_fails_is_told() {
        let error = std::io::Error::from_raw_os_error;
        assert!(cannot_sync(&error(libc::EINVAL)) && cannot_sync(&error(libc::ENOSYS)));
        assert!(!cannot_sync(&error(libc::EIO)) && !cannot_sync(&error(libc::ENOSPC)));
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["first", "second"] {
            write_atomically(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sha256_of_files_is_that_of_their_bytes_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [("a", "ab"), ("b", ""), ("c", "c"), ("whole", "abc")] {
            fs::write(at(name), text).unwrap();
        }
        let hash = |names: &[&str]| {
            let paths: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
            sha256_of_files(paths.iter().map(PathBuf::as_path), |_| Ok(()))
        };
        assert_eq!(hash(&["a", "b", "c"]).unwrap(), hash(&["whole"]).unwrap());
        assert_ne!(hash(&["a", "c"]).unwrap(), hash(&["c", "a"]).unwrap());
        assert!(hash(&["a", "missing"]).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn sha256_of_a_known_text() {
        let mut seen = 0;
        let hash = sha256(&mut "abc".as_bytes(), |n| {
            seen += n;
            Ok(())
        });
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((hash.unwrap().as_str(), seen), (known, 3));
    }
}
