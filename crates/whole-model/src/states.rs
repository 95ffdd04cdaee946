//! The hidden states of all contexts in one place of a model, in a file instead of in memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memmap2::MmapMut;

/// One row of `width` values per token, contexts one after the other. The file behind them has no name, so nothing of it
/// is left when the program ends, however that happens.
#[derive(Debug)]
pub(crate) struct States {
    map: MmapMut,
    /// Values of one context.
    n: usize,
}

impl States {
    /// Zeros for `n_contexts` of `n` values each, in `folder`.
    ///
    /// # Errors
    /// If the file cannot be made, filled or mapped.
    pub(crate) fn new(folder: &Path, n_contexts: usize, n: usize) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "too many hidden states");
        let bytes = n_contexts.checked_mul(n).and_then(|n| n.checked_mul(size_of::<f32>()));
        let bytes = bytes.filter(|n| *n > 0).ok_or_else(too_large)?;
        let mut file = tempfile::tempfile_in(folder)?;
        fill(&mut file, bytes as u64)?;
        // SAFETY: the file has no name and its only descriptor stays here, so nobody else changes or shortens it.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Self { map, n })
    }

    /// The states of context number `index`.
    pub(crate) fn context(&self, index: usize) -> &[f32] {
        bytemuck::cast_slice(&self.map[self.range(index)])
    }

    /// The same, to be replaced.
    pub(crate) fn context_mut(&mut self, index: usize) -> &mut [f32] {
        let range = self.range(index);
        bytemuck::cast_slice_mut(&mut self.map[range])
    }

    /// The same states in another file.
    pub(crate) fn copy(&self, folder: &Path) -> io::Result<Self> {
        let mut copy = Self::new(folder, self.map.len() / (self.n * size_of::<f32>()), self.n)?;
        copy.map.copy_from_slice(&self.map);
        Ok(copy)
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let bytes = self.n * size_of::<f32>();
        index * bytes..(index + 1) * bytes
    }
}

/// Appends `n` bytes to a file that will be mapped, each with its room on the disk: a page that found none then would end
/// the program.
pub(crate) fn fill(file: &mut File, n: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(n), file).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_apart_and_copies_are_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut states = States::new(folder.path(), 3, 5).unwrap();
        states.context_mut(1).fill(2.5);
        let mut copy = states.copy(folder.path()).unwrap();
        copy.context_mut(2).fill(1.0);
        let all = |s: &States| (0..3).map(|i| s.context(i)[4]).collect::<Vec<_>>();
        assert_eq!((all(&states), all(&copy)), (vec![0.0, 2.5, 0.0], vec![0.0, 2.5, 1.0]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(States::new(folder.path(), usize::MAX, 5).is_err());
        assert!(States::new(&folder.path().join("none"), 1, 5).is_err());
    }
}
