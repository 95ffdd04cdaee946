//! How products are shared out, and what else decides about the order of their sums.

use gemm_common::cache::CACHE_INFO;

/// By which candle decides in how many parts it splits a product; without it the machine decides.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Makes candle split its products among `n_threads` threads, as many as rayon's pool should have.
///
/// # Safety
/// Another thread must not read or change the environment meanwhile: to be called before any is started.
pub unsafe fn split_among(n_threads: usize) {
    // SAFETY: promised by the caller.
    unsafe { std::env::set_var(VARIABLE, n_threads.to_string()) };
}

/// What of this machine, besides its instructions, decides about the last bits: long sums are cut where the first cache
/// is full.
#[must_use]
pub fn machine() -> String {
    let [first, ..] = *CACHE_INFO;
    format!(
        "first cache of {} B in {} ways of {} B",
        first.cache_bytes, first.associativity, first.cache_line_bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_told_in_one_line_that_stays() {
        let text = machine();
        assert!(text.contains(" ways of ") && text == machine(), "{text}");
    }
}
