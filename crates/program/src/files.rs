//! Files that appear under their final name only when they are complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{Error, io};

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

/// Extension of names of what is not complete. A killed program may leave such files.
pub const TEMPORARY: &str = "tmp";

/// A file that appears under its name once it is complete; dropped before, the file leaves nothing behind.
#[derive(Debug)]
pub struct Unfinished {
    part: NamedTempFile,
    path: PathBuf,
}

impl Unfinished {
    /// Begins the file that will be `path`.
    ///
    /// # Errors
    /// [`Error::Io`], also for a name that is too long for the file system.
    pub fn create(path: &Path) -> Result<Self, Error> {
        // What is made with no mode of its own gets the one that the user's umask allows.
        let permissions = fs::Permissions::from_mode(0o666);
        let suffix = format!(".{TEMPORARY}");
        let mut part = tempfile::Builder::new();
        part.prefix(".unfinished-").suffix(&suffix).permissions(permissions);
        let part = part.tempfile_in(parent(path)).map_err(io(path, "write"))?;
        match path.symlink_metadata() {
            // The name of the part may be, this one may not.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidFilename => Err(io(path, "write")(e)),
            _ => Ok(Self { part, path: path.to_owned() }),
        }
    }

    /// What to write to.
    pub fn file(&mut self) -> &mut File {
        self.part.as_file_mut()
    }

    /// Puts the complete file in place, lastingly.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn publish(self) -> Result<(), Error> {
        let Self { part, path } = self;
        sync(part.as_file()).map_err(io(&path, "flush"))?;
        part.persist(&path).map_err(|e| io(&path, "put the finished file in place")(e.error))?;
        sync_folder(parent(&path))
    }
}

/// Writes a small file in one step: `path` holds either its old content or all of `bytes`.
///
/// # Errors
/// [`Error::Io`]; nothing is left behind then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut unfinished = Unfinished::create(path)?;
    unfinished.file().write_all(bytes).map_err(io(path, "write"))?;
    unfinished.publish()
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
    fn what_is_written_may_be_read_by_whom_the_umask_allows() {
        let dir = tempfile::tempdir().unwrap();
        let [plain, atomic] = ["plain", "atomic"].map(|name| dir.path().join(name));
        fs::write(&plain, "x").unwrap();
        write_atomically(&atomic, b"x").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&plain), mode(&atomic));
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
