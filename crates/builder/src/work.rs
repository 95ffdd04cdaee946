//! The work folder beside the output: one file per finished tensor, so that a killed build goes on.
//!
//! A checkpoint is written to a temporary name, flushed and renamed, and ends with a SHA-256 of itself:
//! one that is incomplete or damaged is noticed and its tensor done again. What tuning makes of a tensor is kept
//! beside what it was made from, so that nothing is lost whatever becomes of the tuning.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use format::{MatrixId, Sidecar, SidecarSpec};
use program::files::{self, TEMPORARY};
use sha2::{Digest, Sha256};

use crate::error::io;
use crate::{Error, Record, TensorResult};

const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
const PART: &str = "output.part";

/// First bytes of a checkpoint; the number is its version.
const MAGIC: &[u8; 8] = b"CODECKP1";
/// Longest header accepted, far above what any tensor needs.
const MAX_HEADER_BYTES: u64 = 1 << 20;
const SHA256_BYTES: u64 = 32;

/// What to do with a work folder or output that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse to start.
    Refuse,
    /// Go on with it (`--resume`).
    Resume,
    /// Start anew (`--force`).
    Replace,
}

/// What a checkpoint is of; later stages are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A tensor that was coded, or that stays dense.
    Coded,
    /// A coded tensor that was tuned together with the others of its FFN.
    FfnTuned,
    /// A coded tensor that was tuned together with all others.
    Tuned,
}

impl Stage {
    /// All, in the order of the work.
    pub(crate) const ALL: [Self; 3] = [Self::Coded, Self::FfnTuned, Self::Tuned];

    /// The stage that `result` is of.
    #[must_use]
    pub fn of(result: &TensorResult) -> Self {
        match (&result.tuned, &result.ffn_tuned) {
            (Some(_), _) => Self::Tuned,
            (None, Some(_)) => Self::FfnTuned,
            (None, None) => Self::Coded,
        }
    }

    /// Extension of its checkpoints.
    fn extension(self) -> &'static str {
        match self {
            Self::Coded => "tensor",
            Self::FfnTuned => "ffn-tuned",
            Self::Tuned => "tuned",
        }
    }
}

/// A work folder that belongs to this process.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    // Holds the lock as long as it is open.
    _lock: File,
    warning: Option<String>,
    checkpoint_every: usize,
    pending: Vec<PathBuf>,
}

impl WorkFolder {
    /// The work folder of `output` for the program that calls itself `kind` (`statecells`).
    #[must_use]
    pub fn path_for(output: &Path, kind: &str) -> PathBuf {
        files::beside(output, &format!(".{kind}-work"))
    }

    /// Makes the folder at `path`, or goes on with the one that is there. Finished tensors are made to
    /// last every `checkpoint_every` tensors.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Locked`] or [`Error::Program`].
    pub fn open(path: &Path, existing: Existing, checkpoint_every: usize) -> Result<Self, Error> {
        match fs::create_dir(path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if existing == Existing::Refuse {
                    return Err(Error::Exists { path: path.to_owned() });
                }
            }
            Err(e) => return Err(io(path, "make the work folder")(e)),
        }
        let (lock, warning) = lock(path)?;
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
            warning,
            checkpoint_every: checkpoint_every.max(1),
            pending: Vec::new(),
        };
        folder.clear(|name| existing == Existing::Replace || has_extension(name, TEMPORARY))?;
        Ok(folder)
    }

    /// Checks that [`Self::open`] could make or use the folder at `path` now. What is there stays as it is.
    ///
    /// # Errors
    /// As those of [`Self::open`].
    pub fn check(path: &Path) -> Result<(), Error> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io(path, "make the work folder")(e)),
            Ok(found) if found.is_dir() => {
                files::check_writable(path)?;
                match File::open(path.join(LOCK)) {
                    Ok(lock) => try_lock(&lock, path).map(drop),
                    Err(_) => Ok(()),
                }
            }
            Ok(_) => {
                Err(io(path, "make the work folder")(std::io::ErrorKind::NotADirectory.into()))
            }
        }
    }

    /// What should be told of the folder: that nothing keeps another build out of it.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The tensors of the checkpoints in the folder at `path`, judged by their names only; none if there
    /// is no such folder.
    #[must_use]
    pub fn tensors_in(path: &Path) -> Vec<MatrixId> {
        let names = fs::read_dir(path).into_iter().flatten().flatten();
        let coded = |name: &str| checkpoint_tensor(name, Stage::Coded);
        names.filter_map(|e| coded(e.file_name().to_str()?)).collect()
    }

    /// The record of the run that made the folder at `path`; `None` if there is none that can be read.
    #[must_use]
    pub fn record_in(path: &Path) -> Option<Record> {
        serde_json::from_slice(&fs::read(path.join(MANIFEST)).ok()?).ok()
    }

    /// Number of checkpoints in the folder.
    #[must_use]
    pub fn n_kept(&self) -> usize {
        Self::tensors_in(&self.path).len()
    }

    /// Where the folder is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record of the run that made the folder; `None` if it was killed before it wrote one.
    ///
    /// # Errors
    /// [`Error::Program`], or [`Error::Resume`] if the record is damaged.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        let path = self.path.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(&path, "read")(e)),
        };
        let record = serde_json::from_slice(&text).map_err(|e| Error::Resume {
            path,
            reason: format!("is damaged ({e}): start anew with --force"),
        })?;
        Ok(Some(record))
    }

    /// Stores the record of this run.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn set_record(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        Ok(files::write_atomically(&self.path.join(MANIFEST), &text)?)
    }

    /// The tensors that are finished and undamaged at `stage`. Damaged checkpoints are removed.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn finished(&self, stage: Stage) -> Result<BTreeMap<MatrixId, TensorResult>, Error> {
        let mut finished = BTreeMap::new();
        for (name, path) in self.entries()? {
            let Some(tensor) = checkpoint_tensor(&name, stage) else { continue };
            let read = read_checkpoint(&path).filter(|(result, _)| Stage::of(result) == stage);
            if let Some((result, _)) = read {
                finished.insert(tensor, result);
            } else {
                fs::remove_file(&path).map_err(io(&path, "remove the damaged checkpoint"))?;
            }
        }
        Ok(finished)
    }

    /// Stores a finished tensor at the stage that it is of.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn save(
        &mut self,
        tensor: MatrixId,
        result: &TensorResult,
        sidecars: &[Sidecar],
    ) -> Result<(), Error> {
        let path = self.checkpoint_path(tensor, Stage::of(result));
        let temporary = path.with_extension(TEMPORARY);
        let written = File::create(&temporary).and_then(|f| write_checkpoint(f, result, sidecars));
        if let Err(e) = written {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
            return Err(io(&path, "write")(e));
        }
        self.pending.push(path);
        if self.pending.len() >= self.checkpoint_every { self.commit() } else { Ok(()) }
    }

    /// Makes everything saved so far last through a kill or a power failure.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn commit(&mut self) -> Result<(), Error> {
        for path in self.pending.drain(..) {
            files::publish(&path.with_extension(TEMPORARY), &path)?;
        }
        Ok(())
    }

    /// The sidecars of a tensor that is finished at `stage`, which must be `specs`.
    ///
    /// # Errors
    /// [`Error::Resume`] if the checkpoint is gone, damaged or holds other sidecars.
    pub fn load(
        &self,
        tensor: MatrixId,
        stage: Stage,
        specs: &[SidecarSpec],
    ) -> Result<Vec<Sidecar>, Error> {
        let path = self.checkpoint_path(tensor, stage);
        let damaged = || Error::Resume {
            path: path.clone(),
            reason: "is damaged: the same command with --resume does this tensor again".to_owned(),
        };
        let (result, data) = read_checkpoint(&path).ok_or_else(damaged)?;
        split_sidecars(&result, specs, &data).ok_or_else(damaged)
    }

    /// Forgets everything of `stage`.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn forget(&self, stage: Stage) -> Result<(), Error> {
        self.clear(|name| has_extension(name, stage.extension()))
    }

    /// Where the output is put together before it gets its name.
    #[must_use]
    pub fn part(&self) -> PathBuf {
        self.path.join(PART)
    }

    /// Removes the folder and everything that this crate put in it.
    ///
    /// # Errors
    /// [`Error::Program`]; a folder that holds files of someone else stays.
    pub fn remove(self) -> Result<(), Error> {
        self.clear(|_| true)?;
        let lock = self.path.join(LOCK);
        fs::remove_file(&lock).map_err(io(&lock, "remove"))?;
        fs::remove_dir(&self.path).map_err(io(&self.path, "remove the work folder"))
    }

    fn checkpoint_path(&self, tensor: MatrixId, stage: Stage) -> PathBuf {
        self.path.join(format!("{}.{}", tensor.stem(), stage.extension()))
    }

    /// Names and paths in the folder, sorted.
    fn entries(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let read = || -> std::io::Result<Vec<_>> {
            let entries: std::io::Result<Vec<_>> = fs::read_dir(&self.path)?.collect();
            let named = entries?
                .into_iter()
                .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())));
            let mut named: Vec<_> = named.collect();
            named.sort();
            Ok(named)
        };
        read().map_err(io(&self.path, "read the work folder"))
    }

    /// Removes this crate's own files, except the lock, whose names `unwanted` accepts.
    fn clear(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), Error> {
        for (name, path) in self.entries()? {
            let own = name == MANIFEST
                || name == PART
                || Stage::ALL.iter().any(|stage| has_extension(&name, stage.extension()))
                || has_extension(&name, TEMPORARY);
            if own && unwanted(&name) {
                fs::remove_file(&path).map_err(io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

/// Locks the folder at `path` as long as the file that is returned is open. A warning where the file system has no
/// locks.
fn lock(path: &Path) -> Result<(File, Option<String>), Error> {
    let lock_path = path.join(LOCK);
    let lock = File::create(&lock_path).map_err(io(&lock_path, "write"))?;
    let warning = try_lock(&lock, path)?;
    Ok((lock, warning))
}

fn try_lock(lock: &File, path: &Path) -> Result<Option<String>, Error> {
    match lock.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => {
            let warning = format!(
                "{}: the file system has no locks ({e}): make sure that no other build writes here",
                path.display()
            );
            Ok(Some(warning))
        }
    }
}

/// The tensor whose checkpoint of `stage` is called `name`.
fn checkpoint_tensor(name: &str, stage: Stage) -> Option<MatrixId> {
    let (tensor, suffix) = MatrixId::parse(name)?;
    (suffix == stage.extension()).then_some(tensor)
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == extension)
}

/// Hash over the data of `sidecars`, as in [`TensorResult::sidecars_sha256`].
#[must_use]
pub fn sidecars_sha256<'a>(data: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    data.into_iter().for_each(|d| hash.update(d));
    files::hex(&hash.finalize())
}

/// Writes magic, length of the header, header, data, and the SHA-256 of all that.
fn write_checkpoint(
    mut file: File,
    result: &TensorResult,
    sidecars: &[Sidecar],
) -> std::io::Result<()> {
    let header = serde_json::to_vec(result).expect("a result is plain data");
    let length = (header.len() as u64).to_le_bytes();
    let data = sidecars.iter().map(|s| s.data.as_slice());
    let mut hash = Sha256::new();
    for bytes in [MAGIC.as_slice(), &length, &header].into_iter().chain(data) {
        hash.update(bytes);
        file.write_all(bytes)?;
    }
    file.write_all(&hash.finalize())
}

/// Header and data of a checkpoint, `None` if anything is wrong with it.
fn read_checkpoint(path: &Path) -> Option<(TensorResult, Vec<u8>)> {
    let mut file = File::open(path).ok()?;
    let n_bytes = file.metadata().ok()?.len();
    let mut start = [0; 16];
    file.read_exact(&mut start).ok()?;
    let (magic, length) = start.split_at(8);
    let header_bytes = u64::from_le_bytes(length.try_into().ok()?);
    let data_bytes =
        n_bytes.checked_sub(start.len() as u64 + SHA256_BYTES)?.checked_sub(header_bytes)?;
    if magic != MAGIC || header_bytes > MAX_HEADER_BYTES {
        return None;
    }
    let mut read = |n: u64| -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(n).ok()?];
        file.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let (header, data, hash) = (read(header_bytes)?, read(data_bytes)?, read(SHA256_BYTES)?);
    let expected = Sha256::new().chain_update(start).chain_update(&header).chain_update(&data);
    if expected.finalize().as_slice() != hash {
        return None;
    }
    Some((serde_json::from_slice(&header).ok()?, data))
}

/// Cuts `data` into the sidecars that `result` lists, which must be `specs`.
fn split_sidecars(
    result: &TensorResult,
    specs: &[SidecarSpec],
    data: &[u8],
) -> Option<Vec<Sidecar>> {
    if result.sidecars.len() != specs.len()
        || result.sidecars.iter().zip(specs).any(|(a, b)| a != b)
    {
        return None;
    }
    let mut rest = data;
    let mut sidecars = Vec::with_capacity(specs.len());
    for spec in specs {
        let (data, after) = rest.split_at_checked(spec.n_bytes()?)?;
        sidecars.push(Sidecar { spec: spec.clone(), data: data.to_vec() });
        rest = after;
    }
    rest.is_empty().then_some(sidecars)
}

#[cfg(test)]
mod tests;
