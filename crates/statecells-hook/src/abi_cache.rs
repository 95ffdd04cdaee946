//! The exported C functions for caches of decoded tiles; `include/statecells.h` is their documentation.

use std::sync::Arc;

use statecells_kernels::TileCache;

use crate::border::{free, guarded, handed_out};
use crate::c_types::StatecellsCacheUse;
use crate::experts::Experts;
use crate::matrix::Matrix;

/// Decoded tiles of any number of matrices.
#[derive(Debug)]
pub struct Cache(Arc<TileCache>);

/// A cache of at most `n_bytes`; null if it cannot be made.
#[unsafe(no_mangle)]
pub extern "C" fn statecells_cache_new(n_bytes: usize) -> *mut Cache {
    let made = guarded(|| Ok(Cache(TileCache::new(n_bytes))));
    // SAFETY: nothing is written where there is no room for an error.
    unsafe { handed_out(made, std::ptr::null_mut(), 0) }
}

/// Gives a cache back; null is accepted. The matrices that keep tiles in it go on.
///
/// # Safety
/// `cache` came from [`statecells_cache_new`], is freed once, and no call on it is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_cache_free(cache: *mut Cache) {
    // SAFETY: the caller's promises.
    unsafe { free(cache) }
}

/// What the cache holds and what it was good for.
///
/// # Safety
/// `cache` is null or live, `usage` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_cache_usage(
    cache: *const Cache,
    usage: *mut StatecellsCacheUse,
) {
    // SAFETY: the caller's promises.
    let (cache, usage) = unsafe { (cache.as_ref(), usage.as_mut()) };
    if let Some(usage) = usage {
        let found = guarded(|| Ok(cache.map(|cache| cache.0.usage()).unwrap_or_default()));
        *usage = found.unwrap_or_default().into();
    }
}

/// Keeps the matrix's decoded tiles in the cache, if its scheme has any.
///
/// # Safety
/// Each is null or live; no other call on `matrix` is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_matrix_keep(matrix: *mut Matrix, cache: *const Cache) {
    // SAFETY: the caller's promises.
    unsafe { keep(matrix, cache, Matrix::keep_tiles) }
}

/// The same for the matrices of experts.
///
/// # Safety
/// As [`statecells_matrix_keep`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statecells_experts_keep(experts: *mut Experts, cache: *const Cache) {
    // SAFETY: the caller's promises.
    unsafe { keep(experts, cache, Experts::keep_tiles) }
}

/// # Safety
/// As [`statecells_matrix_keep`].
unsafe fn keep<T>(matrix: *mut T, cache: *const Cache, keep: impl Fn(&mut T, &Arc<TileCache>)) {
    // SAFETY: the caller's promises.
    let both = unsafe { matrix.as_mut().zip(cache.as_ref()) };
    if let Some((matrix, cache)) = both {
        // A panic leaves a matrix without a cache, which is a matrix.
        let _ = guarded(|| {
            keep(matrix, &cache.0);
            Ok(())
        });
    }
}
