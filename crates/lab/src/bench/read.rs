//! What memory delivers: a plain sum over as many bytes as our matrices have.

use std::hint::black_box;

/// Words that are summed side by side, so that no sum waits for another.
const LANES: usize = 16;

/// Memory to be read.
#[derive(Debug)]
pub struct Reading {
    words: Vec<u64>,
    n_threads: usize,
}

impl Reading {
    /// `n_bytes`, rounded down to whole words, for `n_threads` threads.
    pub fn new(n_bytes: usize, n_threads: usize) -> Self {
        // Not zeros: pages that were never written all read the same physical one.
        Self { words: vec![1; n_bytes / size_of::<u64>()], n_threads }
    }

    /// Reads everything once, each thread its share.
    pub fn run(&self) {
        let share = self.words.len().div_ceil(self.n_threads).max(1);
        let mut shares = self.words.chunks(share);
        let own = shares.next().unwrap_or_default();
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(|| black_box(sum(share)));
            }
            black_box(sum(own));
        });
    }
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; LANES];
    let (lanes, rest) = words.as_chunks::<LANES>();
    for words in lanes {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let words: Vec<u64> = (0..n).collect();
            assert_eq!(sum(&words), n * n.saturating_sub(1) / 2);
            Reading::new(8 * n as usize, 3).run();
        }
    }
}
