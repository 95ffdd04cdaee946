//! llama-bench with `-o json`.

use serde::Deserialize;

use crate::Error;

/// Tokens per second of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchRun {
    /// Reading a prompt.
    pub prompt: f64,
    /// Writing.
    pub generation: f64,
}

#[derive(Deserialize)]
struct Entry {
    n_gen: u64,
    avg_ts: f64,
}

/// Reads the standard output of a run with one prompt and one generation test.
///
/// # Errors
/// [`Error::Output`] if it is something else.
pub fn parse_bench(json: &str) -> Result<BenchRun, Error> {
    let error = |reason: String| Error::Output { program: "llama-bench", reason };
    let entries: Vec<Entry> =
        serde_json::from_str(json).map_err(|e| error(format!("no JSON ({e})")))?;
    let speed = |generates: bool| {
        let entry = entries.iter().find(|e| (e.n_gen > 0) == generates);
        entry.map(|e| e.avg_ts).filter(|s| s.is_finite() && *s > 0.0)
    };
    let missing = |what: &str| error(format!("no speed of {what}"));
    Ok(BenchRun {
        prompt: speed(false).ok_or_else(|| missing("a prompt"))?,
        generation: speed(true).ok_or_else(|| missing("generation"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = include_str!("../../tests/data/bench.json");

    #[test]
    fn a_real_output() {
        let found = parse_bench(OUTPUT).unwrap();
        assert_eq!(found.prompt, 32.822589);
        assert!(found.generation > 0.0 && found.generation != found.prompt);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in
            ["", "[]", "{}", "[{\"n_gen\": 0, \"avg_ts\": 1.0}]", &OUTPUT[..OUTPUT.len() / 2]]
        {
            assert!(parse_bench(text).is_err(), "{text}");
        }
    }
}
