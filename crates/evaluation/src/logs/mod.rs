//! What llama.cpp's programs write, as figures.

mod bench;
mod divergence;
mod perplexity;

pub use bench::{BenchRun, parse_bench};
pub use divergence::{Divergence, parse_divergence};
pub use perplexity::{Perplexity, parse_perplexity};

/// The number of chunks that a log tells of so far, for progress; 0 if there is none yet.
#[must_use]
pub fn chunks_so_far(log: &str) -> usize {
    let running = perplexity::running(log).len();
    running.max(divergence::rows(log).count())
}

/// The first line by which a log explains a failure, without its time stamp; the last line if none does.
#[must_use]
pub fn explanation(log: &str) -> Option<String> {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    // llama.cpp marks lines with a letter: `0.00.004.382 E message`.
    let marked = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.'))
            && words.next() == Some("E")
    };
    let stated = |line: &&str| ["error:", "failed"].iter().any(|w| line.contains(w));
    let found =
        lines().find(marked).or_else(|| lines().find(stated)).or_else(|| lines().next_back())?;
    let message =
        found.split_once(" E ").filter(|_| marked(&found)).map_or(found, |(_, rest)| rest);
    Some(message.trim().chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_without_its_time() {
        let log = "version: x\n0.00.224.633 E llama_model_load: error loading model: no\n0.00.3 E other\n";
        assert_eq!(explanation(log).as_deref(), Some("llama_model_load: error loading model: no"));
        assert_eq!(
            explanation("a\nfailed to quantize: x\nb\n").as_deref(),
            Some("failed to quantize: x")
        );
        assert_eq!(explanation("a\nb\n\n").as_deref(), Some("b"));
        assert_eq!(explanation("\n"), None);
    }

    #[test]
    fn progress_counts_chunks_of_both_kinds_of_log() {
        assert_eq!(chunks_so_far(include_str!("../../tests/data/perplexity.log")), 3);
        assert_eq!(chunks_so_far(include_str!("../../tests/data/kl-divergence.log")), 32);
        assert_eq!(chunks_so_far("0.0 I loading\n"), 0);
    }
}
