//! llama-perplexity with `--kl-divergence`: a file against the base's logits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::stats::{Estimate, from_running_means};

/// How far a file is from the base on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// Perplexity of the file.
    pub perplexity: Estimate,
    /// Perplexity of the base, from its stored logits (16 bits each).
    pub perplexity_base: Estimate,
    /// Mean of ln(PPL / PPL of the base) over tokens.
    pub ln_ratio: Estimate,
    /// Mean Kullback-Leibler divergence from the base, in nats per token.
    pub kl_mean: Estimate,
    /// Median of the same.
    pub kl_median: Option<f64>,
    /// 99th percentile of the same.
    pub kl_p99: Option<f64>,
    /// Share of tokens, 0 to 1, whose likeliest successor is the base's.
    pub same_top: Estimate,
    /// ln(PPL / PPL of the base) of every chunk, from the running means (5 decimals).
    pub chunk_ln_ratio: Vec<f64>,
}

const PROGRAM: &str = "llama-perplexity";

/// Reads a whole log.
///
/// # Errors
/// [`Error::Output`] if a figure is missing or not finite.
pub fn parse_divergence(log: &str) -> Result<Divergence, Error> {
    let required = |label: &str| {
        let missing = || Error::Output { program: PROGRAM, reason: format!("no finite '{label}'") };
        statistic(log, label).filter(|e| e.value.is_finite()).ok_or_else(missing)
    };
    let optional = |label| statistic(log, label).map(|e| e.value).filter(|v| v.is_finite());
    let same_top = required("Same top p")?;
    let means: Vec<f64> = rows(log).filter_map(|row| row.get(3).copied()).collect();
    Ok(Divergence {
        perplexity: required("Mean PPL(Q)")?,
        perplexity_base: required("Mean PPL(base)")?,
        ln_ratio: required("Mean ln(PPL(Q)/PPL(base))")?,
        kl_mean: required("Mean    KLD")?,
        kl_median: optional("Median  KLD"),
        kl_p99: optional("99.0%   KLD"),
        same_top: Estimate {
            value: same_top.value / 100.0,
            error: same_top.error.map(|e| e / 100.0),
        },
        chunk_ln_ratio: from_running_means(&means),
    })
}

/// `Mean    KLD:   0.054870 ±   0.001345`: the figure behind `label` and a colon.
fn statistic(log: &str, label: &str) -> Option<Estimate> {
    let rest = log
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(label)?.trim_start().strip_prefix(':'))?;
    let mut words = rest.split_whitespace();
    let value = words.next()?.trim_end_matches('%').parse().ok()?;
    let error = (words.next() == Some("±")).then(|| words.next()?.parse().ok()).flatten();
    Some(Estimate { value, error: error.filter(|e: &f64| e.is_finite()) })
}

/// Rows of the table by chunk: chunk, PPL, its error, ln ratio, its error, KLD, ... They are running means.
pub(super) fn rows(log: &str) -> impl Iterator<Item = Vec<f64>> + '_ {
    let head = log.find("ln(PPL(Q)/PPL(base))").unwrap_or(log.len());
    log[head..].lines().skip(1).map_while(|line| {
        let words = line.split_whitespace().filter(|w| !matches!(*w, "±" | "%"));
        let values: Option<Vec<f64>> = words.map(|w| w.parse().ok()).collect();
        values.filter(|v| v.len() == 11)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = include_str!("../../tests/data/kl-divergence.log");

    #[test]
    fn a_real_log() {
        let found = parse_divergence(LOG).unwrap();
        assert_eq!(found.perplexity, Estimate { value: 22.908562, error: Some(0.761867) });
        assert_eq!(found.perplexity_base.value, 21.997092);
        assert_eq!(found.ln_ratio, Estimate { value: 0.0406, error: Some(0.004092) });
        assert_eq!(found.kl_mean, Estimate { value: 0.05487, error: Some(0.001345) });
        assert_eq!((found.kl_median, found.kl_p99), (Some(0.037358), Some(0.323973)));
        assert!((found.same_top.value - 0.86618).abs() < 1e-9);
        assert_eq!(found.chunk_ln_ratio.len(), 32);
        assert_eq!(found.chunk_ln_ratio[0], 0.04006);
        let mean = found.chunk_ln_ratio.iter().sum::<f64>() / 32.0;
        assert!((mean - found.ln_ratio.value).abs() < 1e-4);
    }

    #[test]
    fn a_log_cut_anywhere_before_its_last_figure_is_refused_and_never_panics() {
        let end = LOG.find("Same top p: ").unwrap();
        for cut in (0..end).filter(|i| LOG.is_char_boundary(*i)).step_by(7) {
            assert!(parse_divergence(&LOG[..cut]).is_err(), "cut at {cut}");
        }
    }
}
