//! A cache of decoded tiles through the C ABI: products stay what they are, whatever is kept, and whoever asks meanwhile.

mod common;

use std::ptr;

use common::{Coded, Shared, coded, noise, on_threads};
use statecells_hook::{
    Cache, Matrix, StatecellsCacheUse, statecells_cache_free, statecells_cache_new,
    statecells_cache_usage, statecells_matrix_free, statecells_matrix_keep,
};

/// Enough for every instruction set that decodes.
const N_TOKENS: usize = 100;
/// Contexts that run the same matrices at the same time, and the threads of each.
const N_CONTEXTS: i32 = 3;
const N_THREADS: i32 = 2;

fn usage(cache: *const Cache) -> StatecellsCacheUse {
    let mut usage = StatecellsCacheUse::default();
    // SAFETY: null or live, and writable.
    unsafe { statecells_cache_usage(cache, &raw mut usage) };
    usage
}

/// What several contexts ask of the matrices with a cache of `n_bytes`.
fn use_of(n_bytes: usize, matrices: &[Coded]) -> StatecellsCacheUse {
    let cache = statecells_cache_new(n_bytes);
    let open = |coded: &Coded| {
        let matrix = coded.host.open().unwrap();
        // SAFETY: both live, and nothing else runs.
        unsafe { statecells_matrix_keep(matrix, cache) };
        Shared(matrix)
    };
    let opened: Vec<Shared<Matrix>> = matrices.iter().map(open).collect();
    on_threads(N_CONTEXTS, |context| {
        for (coded, matrix) in matrices.iter().zip(&opened).cycle().take(3 * matrices.len()) {
            let mut next = noise(context as u32 + 1);
            let x: Vec<f32> = (0..coded.host.d_in * N_TOKENS).map(|_| next()).collect();
            let no_projection = |_: &[f32]| unreachable!();
            let y = coded.host.product_by(matrix, &x, N_THREADS, no_projection);
            assert!(y == coded.host.product(&x, 1, no_projection));
        }
    });
    let found = usage(cache);
    // SAFETY: each is freed once, the cache before the matrices that keep tiles in it.
    unsafe {
        statecells_cache_free(cache);
        opened.iter().for_each(|matrix| statecells_matrix_free(matrix.get()));
    }
    found
}

/// Two matrices, the second with 1 MiB and a bit of decoded tiles.
fn matrices() -> [Coded; 2] {
    [coded(100, 45, 8, &[(7, 2.5)]), coded(4160, 260, 8, &[])]
}

#[test]
fn contexts_that_run_at_the_same_time_get_their_products() {
    let matrices = matrices();
    for n_bytes in [1, 1 << 20, 1 << 26] {
        let found = use_of(n_bytes, &matrices);
        assert!(found.limit == n_bytes && found.n_bytes <= n_bytes, "{found:?}");
        // No set decodes where there are no dot products of bytes.
        if found.n_asked > 0 {
            let (hits, all) = (found.n_hits, found.n_asked);
            let expected = match n_bytes {
                1 => hits == 0,
                // Some of the tiles; all but the first time, and whoever asks at the same time decodes too.
                n if n == 1 << 20 => hits > all / 4 && hits < all,
                _ => hits >= all / N_CONTEXTS as u64 && hits < all,
            };
            assert!(expected, "{found:?}");
        }
    }
}

#[test]
fn nothing_is_asked_of_a_cache_that_is_not_there() {
    let coded = coded(64, 64, 8, &[]);
    let matrix = coded.host.open().unwrap();
    // SAFETY: null or live, nothing else runs, freed once.
    unsafe {
        statecells_matrix_keep(matrix, ptr::null());
        statecells_matrix_keep(ptr::null_mut(), ptr::null());
        statecells_cache_usage(ptr::null(), ptr::null_mut());
        statecells_cache_free(ptr::null_mut());
        statecells_matrix_free(matrix);
    }
    assert_eq!(usage(ptr::null()), StatecellsCacheUse::default());
}
