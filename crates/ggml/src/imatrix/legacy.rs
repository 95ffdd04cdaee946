//! Importance matrices from before GGUF, `imatrix.dat`, as llama-imatrix still writes them with
//! `--output-format dat`.
//!
//! All numbers are little endian. I32 number of entries; for each of them I32 length of the name, the name, I32 number
//! of calls, I32 number of values, F32 values: mean squares times the number of calls (as they are where that is 0).
//! Then, in newer files, I32 number of chunks, I32 length of the text's name, that name.

use std::collections::HashMap;
use std::ops::Range;

/// More entries than any model has weights.
const MAX_ENTRIES: usize = 1 << 16;
/// Names of tensors are shorter than 64 bytes.
const MAX_NAME_BYTES: usize = 256;
/// Names of texts are paths.
const MAX_PATH_BYTES: usize = 1 << 16;

/// Where everything is in the file.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<String, Entry>,
    /// The text that it was made from.
    pub dataset: Option<String>,
}

/// One weight.
#[derive(Debug)]
struct Entry {
    n_calls: i32,
    /// Bytes of its values.
    values: Range<usize>,
}

/// Whether `file` starts as such a file does: a number of entries and the name of a weight.
pub(crate) fn is_legacy(file: &[u8]) -> bool {
    let mut cursor = Cursor { file, position: 0 };
    cursor.count("entries", MAX_ENTRIES).is_ok() && cursor.name().is_ok()
}

impl Index {
    /// Reads where everything is in `file`, and compares every length with what is left of it.
    ///
    /// The error says what is wrong and where.
    pub fn of(file: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor { file, position: 0 };
        let mut index = Self::default();
        for i in 0..cursor.count("entries", MAX_ENTRIES)? {
            let named = |e| format!("entry {i}: {e}");
            let (name, entry) = cursor.entry().map_err(named)?;
            if index.entries.insert(name.to_owned(), entry).is_some() {
                return Err(named(format!("'{name}' is there twice (damaged)")));
            }
        }
        index.dataset = cursor.dataset()?;
        Ok(index)
    }

    /// Values of `weight`, and the number that they are to be divided by.
    pub fn entry(&self, file: &[u8], weight: &str) -> Option<(Vec<f32>, f32)> {
        let Entry { n_calls, values } = self.entries.get(weight)?;
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        let values = file[values.clone()].chunks_exact(4).map(value).collect();
        Some((values, if *n_calls == 0 { 1.0 } else { *n_calls as f32 }))
    }
}

/// Reads forward; every error says at which byte.
struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (at, end) = (self.position, self.file.len());
        if n > end - at {
            return Err(format!(
                "byte {at}: {n} bytes expected, the file ends at {end} (truncated or damaged)"
            ));
        }
        self.position += n;
        Ok(&self.file[at..at + n])
    }

    fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// A number of `what`, from 1 to `most`.
    fn count(&mut self, what: &str, most: usize) -> Result<usize, String> {
        let (at, n) = (self.position, self.i32()?);
        let fits = usize::try_from(n).ok().filter(|n| (1..=most).contains(n));
        fits.ok_or_else(|| format!("byte {at}: {n} {what} claimed (damaged)"))
    }

    /// A name without what would make a message about it two lines or a command to the terminal.
    fn name(&mut self) -> Result<&'a str, String> {
        let n = self.count("bytes of a name", MAX_NAME_BYTES)?;
        let at = self.position;
        let name = std::str::from_utf8(self.take(n)?).ok();
        let name = name.filter(|name| !name.contains(char::is_control));
        name.ok_or_else(|| format!("byte {at}: the name is not a text (damaged)"))
    }

    fn entry(&mut self) -> Result<(&'a str, Entry), String> {
        let (name, n_calls) = (self.name()?, self.i32()?);
        let n_bytes = 4 * self.count("values", i32::MAX as usize)?;
        let at = self.position;
        self.take(n_bytes).map_err(|e| format!("'{name}': {e}"))?;
        Ok((name, Entry { n_calls, values: at..at + n_bytes }))
    }

    /// What newer files end with.
    fn dataset(&mut self) -> Result<Option<String>, String> {
        if self.position == self.file.len() {
            return Ok(None);
        }
        let _chunks = self.i32()?;
        if self.position == self.file.len() {
            return Ok(None);
        }
        let (at, n) = (self.position, self.i32()?);
        let n = usize::try_from(n).ok().filter(|n| *n <= MAX_PATH_BYTES);
        let n =
            n.ok_or_else(|| format!("byte {at}: the name of the text has no length (damaged)"))?;
        let name = String::from_utf8_lossy(self.take(n)?).into_owned();
        if self.position < self.file.len() {
            return Err(format!("byte {}: the file should end here (damaged)", self.position));
        }
        Ok((n > 0).then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry, `w`, with three values after two calls.
    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in [1i32, 1] {
            bytes.extend(n.to_le_bytes());
        }
        bytes.push(b'w');
        for n in [2i32, 3] {
            bytes.extend(n.to_le_bytes());
        }
        for v in [8.0f32, 0.0, 2.0] {
            bytes.extend(v.to_le_bytes());
        }
        bytes
    }

    fn with_end(end: &[u8]) -> Result<Index, String> {
        Index::of(&[&file(), end].concat())
    }

    #[test]
    fn entries_and_the_text_are_found() {
        let index = Index::of(&file()).unwrap();
        assert_eq!(index.entry(&file(), "w"), Some((vec![8.0, 0.0, 2.0], 2.0)));
        assert_eq!((index.entry(&file(), "v"), index.dataset), (None, None));
        let end = [&7i32.to_le_bytes()[..], &4i32.to_le_bytes(), b"text"].concat();
        assert_eq!(with_end(&end).unwrap().dataset.as_deref(), Some("text"));
        assert_eq!(with_end(&end[..4]).unwrap().dataset, None);
        assert!(is_legacy(&file()) && !is_legacy(b"GGUF\x03\0\0\0\0\0\0\0"));
    }

    #[test]
    fn values_without_calls_are_taken_as_they_are() {
        let mut bytes = file();
        bytes[9..13].copy_from_slice(&0i32.to_le_bytes());
        let index = Index::of(&bytes).unwrap();
        assert_eq!(index.entry(&bytes, "w"), Some((vec![8.0, 0.0, 2.0], 1.0)));
    }

    #[test]
    fn cut_anywhere_or_with_a_wrong_number_anywhere_it_is_refused_or_read_within_bounds() {
        let whole = file();
        for n in 0..whole.len() {
            assert!(Index::of(&whole[..n]).is_err(), "{n}");
        }
        for at in 0..whole.len() - 4 {
            for n in [-1, 0, 1, 2, 64, 1 << 20, i32::MAX, i32::MIN] {
                let mut bytes = whole.clone();
                bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
                if let Ok(index) = Index::of(&bytes) {
                    let _ = index.entry(&bytes, "w");
                }
            }
        }
        for end in [&b"\0"[..], &[0; 5], &[0; 9], &[255; 8], b"\0\0\0\0\x05\0\0\0text"] {
            assert!(with_end(end).is_err(), "{end:?}");
        }
    }

    #[test]
    fn names_that_write_to_the_terminal_or_are_there_twice_are_refused() {
        let mut bytes = file();
        bytes[8] = 0x1b;
        assert!(Index::of(&bytes).unwrap_err().contains("not a text"));
        let mut twice = [file(), file()[4..].to_vec()].concat();
        twice[0] = 2;
        assert!(Index::of(&twice).unwrap_err().contains("'w' is there twice"));
    }
}
