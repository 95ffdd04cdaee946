//! The source's hidden states in all places of a model, in a file for later builds on the same text.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;

use llama::{Layers, LlamaError, Model, Point};
use memmap2::MmapMut;

use crate::TuningError;
use crate::states::fill;
use crate::stream::params;

/// First bytes of such a file: name and version.
const MAGIC: &[u8; 8] = b"SCSTATE1";

/// Bytes before the states: [`MAGIC`], what the states are of, and for every place whether it is complete.
const HEADER: usize = 4096;

/// SHA-256 of all that the states follow from.
pub type Identity = [u8; 32];

/// Numbers that decide the size of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptShape {
    /// Places: two for each layer, before it and in its middle, and the one behind the last.
    pub n_places: usize,
    /// Contexts.
    pub n_contexts: usize,
    /// Values of one context in one place.
    pub n_values: usize,
}

impl KeptShape {
    /// For `n_contexts` of `n_ctx` tokens in `model`.
    ///
    /// # Errors
    /// [`TuningError::Llama`] for a model whose layers cannot be run alone, or share more than the hidden states.
    pub fn of(model: &Model, n_contexts: usize, n_ctx: usize) -> Result<Self, TuningError> {
        let mut layers = Layers::new(model, params(n_ctx, 1))?;
        if layers.n_shared()? > 0 {
            let reason = "layers of this model share keys and values, which are not kept";
            return Err(LlamaError::Part(reason.to_owned()).into());
        }
        let n_values = n_ctx * layers.width(Point::Before(1))?;
        Ok(Self { n_places: 2 * model.n_layer() + 1, n_contexts, n_values })
    }

    /// Size of the file in bytes; `None` if that is no number, or there are too many places.
    #[must_use]
    pub fn n_bytes(self) -> Option<u64> {
        let Self { n_places, n_contexts, n_values } = self;
        let fits = MAGIC.len() + size_of::<Identity>() + n_places <= HEADER;
        let values = n_places.checked_mul(n_contexts)?.checked_mul(n_values)?;
        let bytes = values.checked_mul(size_of::<f32>())?.checked_add(HEADER)?;
        u64::try_from(bytes).ok().filter(|_| fits)
    }
}

/// The file. A place that was not finished counts as empty.
#[derive(Debug)]
pub struct KeptStates {
    map: MmapMut,
    shape: KeptShape,
}

impl KeptStates {
    /// The file at `path`, made with empty places if there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a file of something else, or another error of reading or writing it.
    pub fn open(path: &Path, identity: &Identity, shape: KeptShape) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "too many hidden states");
        let n_bytes = shape.n_bytes().ok_or_else(too_large)?;
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => make(path, identity, n_bytes)?,
            Err(e) => return Err(e),
        };
        check(&mut file, identity, n_bytes)?;
        // SAFETY: the file has the size that all ranges lie in (checked). Who changes or shortens it meanwhile breaks the
        // promise of every mapped file; values that are no numbers are found where they are used.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Self { map, shape })
    }

    /// The states of a context in a complete place.
    pub(crate) fn get(&self, place: usize, context: usize) -> Option<&[f32]> {
        let is_complete = place < self.shape.n_places && self.map[flag(place)] == 1;
        is_complete.then(|| bytemuck::cast_slice(&self.map[self.range(place, context)]))
    }

    /// Keeps the states of a context in a place that is not complete yet.
    pub(crate) fn put(&mut self, place: usize, context: usize, states: &[f32]) {
        if place < self.shape.n_places && self.map[flag(place)] != 1 {
            let range = self.range(place, context);
            bytemuck::cast_slice_mut::<u8, f32>(&mut self.map[range]).copy_from_slice(states);
        }
    }

    /// All contexts of the place have been put.
    ///
    /// # Errors
    /// If they cannot be written to the disk.
    pub(crate) fn finish(&mut self, place: usize) -> io::Result<()> {
        if place < self.shape.n_places && self.map[flag(place)] != 1 {
            let all = self.range(place, 0).start..self.range(place, self.shape.n_contexts).start;
            self.map.flush_range(all.start, all.len())?;
            self.map[flag(place)] = 1;
            self.map.flush_range(0, HEADER)?;
        }
        Ok(())
    }

    fn range(&self, place: usize, context: usize) -> Range<usize> {
        let KeptShape { n_contexts, n_values, .. } = self.shape;
        let bytes = n_values * size_of::<f32>();
        let start = HEADER + (place * n_contexts + context) * bytes;
        start..start + bytes
    }
}

/// Where the header says whether `place` is complete.
fn flag(place: usize) -> usize {
    MAGIC.len() + size_of::<Identity>() + place
}

/// A file of empty places.
fn make(path: &Path, identity: &Identity, n_bytes: u64) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut part = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    part.write_all(MAGIC)?;
    part.write_all(identity)?;
    let left = n_bytes - (MAGIC.len() + identity.len()) as u64;
    fill(part.as_file_mut(), left)?;
    part.as_file().sync_all()?;
    Ok(part.persist_noclobber(path)?)
}

fn check(file: &mut File, identity: &Identity, n_bytes: u64) -> io::Result<()> {
    let other = || io::Error::new(io::ErrorKind::InvalidData, "holds other hidden states");
    let mut header = [0; MAGIC.len() + size_of::<Identity>()];
    file.rewind()?;
    file.read_exact(&mut header).map_err(|_| other())?;
    let is_same = header[..MAGIC.len()] == *MAGIC && header[MAGIC.len()..] == *identity;
    if is_same && file.metadata()?.len() == n_bytes { Ok(()) } else { Err(other()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KeptShape = KeptShape { n_places: 3, n_contexts: 2, n_values: 4 };

    #[test]
    fn complete_places_are_found_again_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.states");
        let open = |identity| KeptStates::open(&path, &[identity; 32], SHAPE);
        let mut kept = open(7).unwrap();
        for place in [1, 2] {
            (0..2).for_each(|c| kept.put(place, c, &[place as f32 + 10.0 * c as f32; 4]));
        }
        kept.finish(1).unwrap();
        assert!(kept.get(2, 0).is_none());
        drop(kept);
        let mut again = open(7).unwrap();
        assert_eq!(again.get(1, 1), Some(&[11.0; 4][..]));
        assert!(
            again.get(0, 0).is_none() && again.get(2, 0).is_none() && again.get(3, 0).is_none()
        );
        again.put(1, 1, &[0.0; 4]);
        assert_eq!(again.get(1, 1), Some(&[11.0; 4][..]), "what is complete stays");
        drop(again);
        assert_eq!(open(8).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let wider = KeptShape { n_values: 5, ..SHAPE };
        let other = KeptStates::open(&path, &[7; 32], wider).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::InvalidData);
        std::fs::write(&path, "short").unwrap();
        assert_eq!(open(7).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn sizes_are_those_of_the_file_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.states");
        let shape = KeptShape { n_places: 11, n_contexts: 3, n_values: 32 };
        KeptStates::open(&path, &[0; 32], shape).unwrap();
        assert_eq!(Some(path.metadata().unwrap().len()), shape.n_bytes());
        assert_eq!(shape.n_bytes(), Some(4096 + 11 * 3 * 32 * 4));
        assert_eq!(KeptShape { n_places: 4096, ..SHAPE }.n_bytes(), None);
        assert_eq!(KeptShape { n_contexts: usize::MAX, ..SHAPE }.n_bytes(), None);
    }
}
