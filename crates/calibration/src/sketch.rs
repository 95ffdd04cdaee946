//! A fingerprint of the calibration text, so that an evaluation can tell when it reads the same text.

use std::collections::HashSet;

use crate::mix::mix;

/// Tokens per shingle: long enough that only copied text shares one.
pub const SHINGLE_TOKENS: usize = 32;

/// Hashes kept at most: 32 kB, and shared passages of 1/1000 of the text are still found.
const MAX_HASHES: usize = 4096;

/// The smallest hashes of all runs of [`SHINGLE_TOKENS`] tokens of a text (a bottom-k sketch: Broder, "On
/// the resemblance and containment of documents", 1997).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextSketch {
    /// Ascending, without repetition.
    hashes: Vec<u64>,
}

/// How much of a text a sketched text shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Distinct shingles of the text that were compared: those whose hash the sketch would have kept.
    pub n_compared: usize,
    /// How many of them the sketched text has.
    pub n_shared: usize,
}

impl Overlap {
    /// Estimated share of the text, 0 to 1, that the sketched text has too.
    #[must_use]
    pub fn share(self) -> f64 {
        self.n_shared as f64 / self.n_compared.max(1) as f64
    }
}

impl TextSketch {
    /// Sketch of `passages`; shingles lie within one passage.
    #[must_use]
    pub fn of<'a>(passages: impl IntoIterator<Item = &'a [i32]>) -> Self {
        let mut hashes: Vec<u64> = passages.into_iter().flat_map(shingle_hashes).collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes.truncate(MAX_HASHES);
        Self { hashes }
    }

    /// A sketch from its hashes; `None` unless they ascend.
    #[must_use]
    pub fn from_hashes(hashes: Vec<u64>) -> Option<Self> {
        hashes.windows(2).all(|w| w[0] < w[1]).then_some(Self { hashes })
    }

    /// The hashes, ascending.
    #[must_use]
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// How much of `tokens`, made by the same tokenizer, the sketched text shares.
    #[must_use]
    pub fn overlap(&self, tokens: &[i32]) -> Overlap {
        let complete = self.hashes.len() < MAX_HASHES;
        let limit = if complete { u64::MAX } else { self.hashes[MAX_HASHES - 1] };
        let compared: HashSet<u64> = shingle_hashes(tokens).filter(|&h| h <= limit).collect();
        let n_shared = compared.iter().filter(|h| self.hashes.binary_search(h).is_ok()).count();
        Overlap { n_compared: compared.len(), n_shared }
    }
}

fn shingle_hashes(tokens: &[i32]) -> impl Iterator<Item = u64> {
    tokens
        .windows(SHINGLE_TOKENS)
        .map(|shingle| shingle.iter().fold(0, |hash, &t| mix(hash ^ u64::from(t.cast_unsigned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize, seed: u64) -> Vec<i32> {
        (0..n as u64).map(|i| (mix(i ^ seed << 40) % 1000) as i32).collect()
    }

    #[test]
    fn copies_are_found_at_any_place_and_other_texts_are_not() {
        let (a, b) = (text(20_000, 1), text(20_000, 2));
        let sketch = TextSketch::of([&a[..]]);
        assert_eq!(sketch.hashes().len(), MAX_HASHES);
        assert_eq!(sketch.overlap(&b).n_shared, 0);
        assert!(sketch.overlap(&b).n_compared > 3000);
        assert_eq!(sketch.overlap(&a).share(), 1.0);
        let mixed: Vec<i32> = b[..7001].iter().chain(&a[5003..12_003]).copied().collect();
        let share = sketch.overlap(&mixed).share();
        assert!((0.45..0.55).contains(&share), "{share}");
    }

    #[test]
    fn short_texts_are_kept_whole() {
        let a = text(100, 1);
        let sketch = TextSketch::of([&a[..50], &a[50..]]);
        assert_eq!(sketch.hashes().len(), 2 * (50 - SHINGLE_TOKENS + 1));
        assert_eq!(sketch.overlap(&a[..50]).share(), 1.0);
        assert_eq!(TextSketch::default().overlap(&a).share(), 0.0);
        assert_eq!(sketch.overlap(&a[..5]).share(), 0.0);
        let hashes = sketch.hashes().to_vec();
        assert_eq!(TextSketch::from_hashes(hashes), Some(sketch));
        assert_eq!(TextSketch::from_hashes(vec![2, 1]), None);
    }
}
