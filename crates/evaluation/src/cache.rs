//! Finished measurements, kept so that `--resume` and other evaluations can use them again.

use std::fs;
use std::path::{Path, PathBuf};

use program::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::error::io;

/// A folder of measurements, each under a name and the hash of everything that it depends on.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    reuse: bool,
}

/// What a measurement depends on, hashed: programs and inputs by their hash, and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of `parts`.
    #[must_use]
    pub fn of<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            let part = part.as_ref();
            // Lengths keep the parts apart.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(files::hex(&hash.finalize()))
    }

    /// The hash, hexadecimal.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A measurement with the log it was read from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry<T> {
    key: String,
    /// The figures.
    pub value: T,
    /// What the program wrote.
    pub log: String,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Cache {
    /// The measurements in `folder`, which is made if needed; found again only with `reuse`.
    ///
    /// # Errors
    /// [`Error::Common`].
    pub fn new(folder: &Path, reuse: bool) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(io(folder, "make the folder"))?;
        Ok(Self { folder: folder.to_owned(), reuse })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str, key: &Key) -> PathBuf {
        self.folder.join(format!("{name}-{}.json", &key.0[..16]))
    }

    /// The measurement `name` with `key`, if it is there. What cannot be read is as if it were not there.
    #[must_use]
    pub fn find<T: DeserializeOwned>(&self, name: &str, key: &Key) -> Option<Entry<T>> {
        let text = self.reuse.then(|| fs::read(self.path(name, key)).ok()).flatten()?;
        let entry: Entry<T> = serde_json::from_slice(&text).ok()?;
        (entry.key == key.0).then_some(entry)
    }

    /// Keeps a measurement.
    ///
    /// # Errors
    /// [`Error::Common`] if it cannot be written.
    pub fn keep<T: Serialize>(
        &self,
        name: &str,
        key: &Key,
        value: T,
        log: String,
        seconds: f64,
    ) -> Result<Entry<T>, Error> {
        let entry = Entry { key: key.0.clone(), value, log, seconds };
        let text = serde_json::to_vec_pretty(&entry).expect("measurements are plain data");
        files::write_atomically(&self.path(name, key), &text)?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_found_by_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), true).unwrap();
        let key = Key::of(["a", "bc"]);
        assert_ne!(key, Key::of(["ab", "c"]));
        cache.keep("ppl", &key, 1.5, "log".into(), 2.0).unwrap();
        assert_eq!(cache.find::<f64>("ppl", &key).unwrap().value, 1.5);
        assert!(cache.find::<f64>("ppl", &Key::of(["other"])).is_none());
        assert!(cache.find::<f64>("kl", &key).is_none());
        assert!(cache.find::<String>("ppl", &key).is_none());
        assert!(Cache::new(folder.path(), false).unwrap().find::<f64>("ppl", &key).is_none());
        fs::write(cache.path("ppl", &key), "{").unwrap();
        assert!(cache.find::<f64>("ppl", &key).is_none());
    }
}
