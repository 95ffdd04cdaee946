//! What the machine says about itself.

use std::fs;

/// Assumed where the machine does not tell: larger than the caches of most.
const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// Size of the largest cache of the first processor.
pub fn last_level_cache_bytes() -> usize {
    let sizes = (0..8).filter_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parse_size(fs::read_to_string(path).ok()?.trim())
    });
    sizes.max().unwrap_or(DEFAULT_CACHE_BYTES)
}

/// `32768K` in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_sizes_have_a_unit() {
        assert_eq!(parse_size("32768K"), Some(32 << 20));
        assert_eq!(parse_size("8M"), Some(8 << 20));
        assert_eq!(parse_size("512"), None);
        assert!(last_level_cache_bytes() >= 1 << 10);
    }
}
