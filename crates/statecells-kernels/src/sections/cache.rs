//! Decoded tiles that are kept from product to product.
//!
//! A tile is asked for once per product of a large batch, and a model asks for all its tiles in turn. The least recently used
//! tile alone would be the very one that is needed next: a cache that is a little too small would never hit. So the least
//! recently used one makes room only if the whole model has gone by twice without it; else the new tile is not kept.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Bytes of some decoded tiles, shared by all threads and all products of a model.
#[derive(Debug)]
pub struct TileCache {
    limit: usize,
    /// Bytes of all tiles that there are, those that are still read after they had to go among them.
    live: Arc<AtomicUsize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kept: LruCache<Key, Kept>,
    /// Tiles that the matrices have in all.
    n_tiles: u64,
    n_matrices: usize,
    n_hits: u64,
    n_asked: u64,
}

/// One pass over a tile of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    matrix: usize,
    tile: usize,
    span: usize,
}

#[derive(Debug)]
struct Kept {
    bytes: Arc<TileBytes>,
    /// How many tiles had been asked for when this one was last.
    asked: u64,
}

/// What a cache holds and what it was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Bytes of decoded tiles now.
    pub n_bytes: usize,
    /// Bytes of decoded tiles that there may be.
    pub limit: usize,
    /// Tiles that were found.
    pub n_hits: u64,
    /// Tiles that were asked for.
    pub n_asked: u64,
}

impl TileCache {
    /// A cache of at most `limit` bytes of decoded tiles, at no time more; what it needs besides is some 150 bytes a tile.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let state =
            State { kept: LruCache::unbounded(), n_tiles: 0, n_matrices: 0, n_hits: 0, n_asked: 0 };
        Arc::new(Self { limit, live: Arc::default(), state: Mutex::new(state) })
    }

    /// What it holds and what it was good for so far.
    #[must_use]
    pub fn usage(&self) -> CacheUse {
        let state = self.lock();
        CacheUse {
            n_bytes: self.live.load(Ordering::Relaxed),
            limit: self.limit,
            n_hits: state.n_hits,
            n_asked: state.n_asked,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done: every change is one call of the map.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One matrix's share of a cache.
#[derive(Clone, Debug)]
pub(super) struct CachedTiles {
    cache: Arc<TileCache>,
    matrix: usize,
}

impl CachedTiles {
    /// For a matrix that is asked for `n_tiles` tiles in a product.
    pub fn new(cache: &Arc<TileCache>, n_tiles: usize) -> Self {
        let mut state = cache.lock();
        state.n_tiles += n_tiles as u64;
        state.n_matrices += 1;
        Self { matrix: state.n_matrices, cache: Arc::clone(cache) }
    }

    /// The part of `tile` that begins at `span`, if it is there.
    pub fn find(&self, tile: usize, span: usize) -> Option<Arc<TileBytes>> {
        let mut state = self.cache.lock();
        state.n_asked += 1;
        let asked = state.n_asked;
        let kept = state.kept.get_mut(&Key { matrix: self.matrix, tile, span })?;
        kept.asked = asked;
        let bytes = Arc::clone(&kept.bytes);
        state.n_hits += 1;
        Some(bytes)
    }

    /// Room for such a part, if it is to be kept once it is decoded.
    pub fn room(&self, n_bytes: usize) -> Option<TileBytes> {
        let TileCache { limit, live, .. } = &*self.cache;
        let mut state = self.cache.lock();
        while live.load(Ordering::Acquire).checked_add(n_bytes)? > *limit {
            let (_, oldest) = state.kept.peek_lru()?;
            if state.n_asked - oldest.asked <= 2 * state.n_tiles {
                return None;
            }
            state.kept.pop_lru();
        }
        TileBytes::new(n_bytes, live)
    }

    /// Keeps such a part.
    pub fn keep(&self, tile: usize, span: usize, bytes: TileBytes) -> Arc<TileBytes> {
        let bytes = Arc::new(bytes);
        let mut state = self.cache.lock();
        let kept = Kept { bytes: Arc::clone(&bytes), asked: state.n_asked };
        state.kept.put(Key { matrix: self.matrix, tile, span }, kept);
        bytes
    }
}

/// The decoded bytes of a tile. They are counted while there are any.
#[derive(Debug)]
pub(super) struct TileBytes {
    lines: Vec<Line>,
    n_bytes: usize,
    live: Arc<AtomicUsize>,
}

/// Aligned as a cache line, so that no vector of a tile lies in two.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line(
    #[expect(dead_code, reason = "read with its neighbours, as one slice")] [u8; Self::BYTES],
);

impl Line {
    const BYTES: usize = 64;
}

impl TileBytes {
    /// Zeros; `None` where there are none, or the system has no memory.
    fn new(n_bytes: usize, live: &Arc<AtomicUsize>) -> Option<Self> {
        if n_bytes == 0 {
            return None;
        }
        let (n_lines, mut lines) = (n_bytes.div_ceil(Line::BYTES), Vec::new());
        lines.try_reserve_exact(n_lines).ok()?;
        lines.resize(n_lines, Line([0; Line::BYTES]));
        live.fetch_add(n_bytes, Ordering::AcqRel);
        Some(Self { lines, n_bytes, live: Arc::clone(live) })
    }

    pub fn as_slice(&self) -> &[u8] {
        let lines: &[Line] = &self.lines;
        // SAFETY: lines are bytes without gaps.
        let bytes =
            unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) };
        &bytes[..self.n_bytes]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let lines: &mut [Line] = &mut self.lines;
        // SAFETY: lines are bytes without gaps, any bytes are lines, and the borrow goes over to the result.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines))
        };
        &mut bytes[..self.n_bytes]
    }
}

impl Drop for TileBytes {
    fn drop(&mut self) {
        self.live.fetch_sub(self.n_bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for `tile`; whether it was there.
    fn ask(tiles: &CachedTiles, tile: usize, n_bytes: usize) -> bool {
        if let Some(bytes) = tiles.find(tile, 0) {
            assert!(bytes.as_slice().iter().all(|b| *b == tile as u8));
            return true;
        }
        if let Some(mut bytes) = tiles.room(n_bytes) {
            bytes.as_mut_slice().fill(tile as u8);
            tiles.keep(tile, 0, bytes);
        }
        false
    }

    #[test]
    fn tiles_are_found_again_as_far_as_there_is_room() {
        let cache = TileCache::new(700);
        let tiles = CachedTiles::new(&cache, 10);
        let pass = || (0..10).filter(|tile| ask(&tiles, *tile, 100)).count();
        // In turn, where the least recently used alone would never be found.
        assert_eq!([pass(), pass(), pass()], [0, 7, 7]);
        let usage = cache.usage();
        assert_eq!(usage, CacheUse { n_bytes: 700, limit: 700, n_hits: 14, n_asked: 30 });
        // Another matrix has tiles of its own.
        assert!(!ask(&CachedTiles::new(&cache, 1), 0, 100));
    }

    #[test]
    fn what_is_no_longer_asked_for_makes_room() {
        let cache = TileCache::new(300);
        let tiles = CachedTiles::new(&cache, 6);
        for tile in 0..3 {
            assert!(!ask(&tiles, tile, 100));
        }
        // Not quite two whole products of other tiles.
        for n in 0..10 {
            assert!(!ask(&tiles, 3 + n % 3, 100));
        }
        assert!(!ask(&tiles, 3, 100) && ask(&tiles, 3, 100));
        assert!(!ask(&tiles, 0, 100), "the oldest had to go");
        assert_eq!(cache.usage().n_bytes, 300);
    }

    #[test]
    fn a_tile_that_is_still_read_is_counted() {
        let cache = TileCache::new(100);
        let tiles = CachedTiles::new(&cache, 0);
        assert!(!ask(&tiles, 0, 100));
        let read = tiles.find(0, 0).unwrap();
        assert!(!ask(&tiles, 1, 100), "the other has gone, but is still read");
        assert!(tiles.find(0, 0).is_none() && cache.usage().n_bytes == 100);
        assert!(read.as_slice().len() == 100 && tiles.find(1, 0).is_none());
        drop(read);
        assert!(!ask(&tiles, 1, 100) && ask(&tiles, 1, 100));
    }

    #[test]
    fn what_is_too_large_or_empty_is_not_kept() {
        let cache = TileCache::new(100);
        let tiles = CachedTiles::new(&cache, 1);
        for n_bytes in [0, 101, usize::MAX] {
            assert!(tiles.room(n_bytes).is_none(), "{n_bytes}");
        }
        assert_eq!(cache.usage().n_bytes, 0);
    }
}
