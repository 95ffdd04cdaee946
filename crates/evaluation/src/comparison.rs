//! Several evaluations of one base side by side: what every size costs.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::file_report::{FileKind, FileReport};
use crate::report::EvaluationReport;
use crate::stats::Estimate;

/// One file of one of the evaluations.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name for people; compressed files are told apart by their file names.
    pub label: String,
    /// What it is.
    pub kind: FileKind,
    /// Whether more than its FFN was requantized.
    pub whole: bool,
    /// Bytes of the FFN matrices.
    pub ffn_bytes: u64,
    /// Bits per FFN weight.
    pub bits_per_weight: f64,
    /// Perplexity.
    pub perplexity: Estimate,
    /// Mean Kullback-Leibler divergence from the base in nats per token; `None` for the base.
    pub divergence: Option<Estimate>,
}

/// All files of several evaluations, by bytes of the FFN.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The base's path.
    pub base: String,
    /// Chunks and tokens per chunk.
    pub chunks: (usize, usize),
    /// The files.
    pub entries: Vec<Entry>,
}

impl Comparison {
    /// Puts `reports` together, each with the path that it was read from.
    ///
    /// # Errors
    /// [`Error::Input`] if there are none, if one has no perplexities, or if two of them measured another base, another text or another length.
    pub fn new(reports: &[(PathBuf, EvaluationReport)]) -> Result<Self, Error> {
        let Some((first_path, first)) = reports.first() else {
            return Err(Error::input(Path::new("--compare"), "there is no report"));
        };
        let mut entries: Vec<Entry> = Vec::new();
        for (path, report) in reports {
            check_same(first_path, first, path, report)?;
            if let Some(reason) = &report.no_logits {
                let reason = format!(
                    "holds no perplexities to compare, the model gives no logits for the next token: {reason}"
                );
                return Err(Error::input(path, reason));
            }
            for entry in report.files.iter().filter_map(Entry::of) {
                if !entries.iter().any(|e| e.label == entry.label && e.kind == entry.kind) {
                    entries.push(entry);
                }
            }
        }
        entries.sort_by_key(|e| e.ffn_bytes);
        let base = first.file("base").map_or_else(String::new, |f| f.path.clone());
        Ok(Self { base, chunks: (first.settings.chunks, first.settings.n_ctx), entries })
    }

    /// Requantized files whose divergence a smaller compressed file undercuts, and that file: the smallest one.
    #[must_use]
    pub fn undercut(&self) -> Vec<(&Entry, &Entry)> {
        let coded = || self.entries.iter().filter(|e| e.kind == FileKind::Statecells);
        let types = self.entries.iter().filter(|e| e.kind == FileKind::Requantized && !e.whole);
        let better = |of: &Entry| {
            let limit = of.divergence?.value;
            coded().find(|c| {
                c.ffn_bytes < of.ffn_bytes && c.divergence.is_some_and(|d| d.value < limit)
            })
        };
        types.filter_map(|t| Some((t, better(t)?))).collect()
    }
}

impl Entry {
    /// `None` for a file that was not measured.
    fn of(file: &FileReport) -> Option<Self> {
        let sizes = file.sizes()?;
        let divergence = crate::measured::value(&file.divergence).map(|d| d.kl_mean);
        let stem = Path::new(&file.path).file_stem().map(|s| s.to_string_lossy().into_owned());
        let label = match file.kind {
            FileKind::Statecells => stem.unwrap_or_else(|| file.label.clone()),
            _ => file.label.clone(),
        };
        Some(Self {
            label,
            kind: file.kind,
            whole: file.is_whole(),
            ffn_bytes: sizes.ffn_bytes,
            bits_per_weight: sizes.ffn_bits_per_weight,
            perplexity: file.ppl()?,
            divergence,
        })
    }
}

/// Figures of different tokens cannot stand in one picture.
fn check_same(
    first_path: &Path,
    first: &EvaluationReport,
    path: &Path,
    report: &EvaluationReport,
) -> Result<(), Error> {
    let base = |r: &EvaluationReport| r.file("base").and_then(|f| f.sha256.clone());
    let length = |r: &EvaluationReport| (r.settings.n_ctx, r.settings.chunks);
    let differs = if base(report) != base(first) {
        "base"
    } else if report.text.sha256 != first.text.sha256 {
        "text"
    } else if length(report) != length(first) {
        "length of text (--chunks, --ctx)"
    } else {
        return Ok(());
    };
    let of = first_path.display();
    Err(Error::input(
        path,
        format!("another {differs} than in {of}: compare evaluations of one kind"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> EvaluationReport {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/evaluation-report.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn named(
        name: &str,
        change: impl FnOnce(&mut EvaluationReport),
    ) -> (PathBuf, EvaluationReport) {
        let mut report = sample();
        let coded = report.files.iter_mut().find(|f| f.kind == FileKind::Statecells).unwrap();
        coded.path = format!("models/{name}.gguf");
        change(&mut report);
        (PathBuf::from(format!("{name}.json")), report)
    }

    #[test]
    fn files_of_several_reports_stand_side_by_side_once_each() {
        let reports = [named("small", |_| {}), named("large", |_| {})];
        let comparison = Comparison::new(&reports).unwrap();
        let coded: Vec<&str> = comparison
            .entries
            .iter()
            .filter(|e| e.kind == FileKind::Statecells)
            .map(|e| e.label.as_str())
            .collect();
        assert_eq!(coded, ["small", "large"]);
        let bases = comparison.entries.iter().filter(|e| e.kind == FileKind::Base).count();
        assert_eq!(bases, 1);
        assert!(comparison.entries.is_sorted_by_key(|e| e.ffn_bytes));
    }

    #[test]
    fn other_bases_texts_and_lengths_are_refused() {
        let message = |change: fn(&mut EvaluationReport)| {
            let reports = [named("a", |_| {}), named("b", change)];
            Comparison::new(&reports).unwrap_err().to_string()
        };
        let other_base = |r: &mut EvaluationReport| r.files[0].sha256 = Some("0".repeat(64));
        assert!(message(other_base).starts_with("b.json: another base than in a.json"));
        assert!(message(|r| r.text.sha256 = "0".repeat(64)).contains("another text"));
        assert!(message(|r| r.settings.chunks += 1).contains("length"));
        assert!(Comparison::new(&[]).is_err());
    }

    #[test]
    fn a_type_is_undercut_by_a_smaller_file_that_is_closer_to_the_base() {
        let entry = |label: &str, kind, ffn_bytes, kl| Entry {
            label: label.to_owned(),
            kind,
            whole: false,
            ffn_bytes,
            bits_per_weight: 1.0,
            perplexity: Estimate { value: 20.0, error: None },
            divergence: Some(Estimate { value: kl, error: None }),
        };
        let entries = vec![
            entry("s4", FileKind::Statecells, 10, 0.5),
            entry("s5", FileKind::Statecells, 20, 0.2),
            entry("Q2_K", FileKind::Requantized, 25, 0.3),
            entry("Q8_0", FileKind::Requantized, 90, 0.01),
        ];
        let comparison = Comparison { base: String::new(), chunks: (1, 512), entries };
        let found: Vec<(&str, &str)> = comparison
            .undercut()
            .iter()
            .map(|(t, c)| (t.label.as_str(), c.label.as_str()))
            .collect();
        assert_eq!(found, [("Q2_K", "s5")]);
    }
}
