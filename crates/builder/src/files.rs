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

/// Makes a rename inside `folder` last through a power failure.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder, "flush the folder"))
}

/// Moves the complete file `from` to `to` in the same file system, lastingly.
///
/// # Errors
/// [`Error::Io`].
pub fn publish(from: &Path, to: &Path) -> Result<(), Error> {
    File::open(from).and_then(|f| f.sync_all()).map_err(io(from, "flush"))?;
    fs::rename(from, to).map_err(io(to, "put the finished file in place"))?;
    sync_folder(parent(to))
}

/// Writes a small file in one step: `path` holds either its old content or all of `bytes`.
///
/// # Errors
/// [`Error::Io`]; nothing is left behind then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = beside(path, ".tmp");
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
    let mut block = vec![0; HASH_BLOCK_BYTES];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(hex(&hash.finalize())),
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
