//! llama-perplexity without `--kl-divergence`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::stats::{Estimate, from_running_means};

/// Perplexity of one file on a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perplexity {
    /// `Final estimate`, with the uncertainty that llama-perplexity gives.
    pub estimate: Estimate,
    /// Mean negative log-likelihood of every chunk, from the running perplexities (4 decimals).
    pub chunk_nll: Vec<f64>,
}

/// What llama-perplexity says in the place of a final estimate where there is no variance.
const NO_VARIANCE: &str = "Unexpected negative standard deviation of log(prob)";

/// Reads a whole log.
///
/// # Errors
/// [`Error::Output`] if there is no final estimate, or it is not finite.
pub fn parse_perplexity(log: &str) -> Result<Perplexity, Error> {
    let error =
        |reason: &str| Error::Output { program: "llama-perplexity", reason: reason.to_owned() };
    let means: Vec<f64> = running(log).iter().map(|p| p.ln()).collect();
    let (value, uncertainty) = match log.rsplit_once("Final estimate: PPL = ") {
        Some((_, rest)) => {
            let mut words = rest.split_whitespace();
            let value = words.next().and_then(|w| w.parse().ok());
            (value, words.nth(1).and_then(|w| w.parse().ok()))
        }
        // All tokens cost the same, and rounding made the variance negative.
        None if log.contains(NO_VARIANCE) => (means.last().map(|m| m.exp()), None),
        None => return Err(error("no 'Final estimate'")),
    };
    let value =
        value.filter(|v: &f64| v.is_finite()).ok_or_else(|| error("no finite perplexity"))?;
    let uncertainty = uncertainty.filter(|e: &f64| e.is_finite());
    Ok(Perplexity {
        estimate: Estimate { value, error: uncertainty },
        chunk_nll: from_running_means(&means),
    })
}

/// The running perplexities `[1]27.8982,[2]29.7508,`.
pub(super) fn running(log: &str) -> Vec<f64> {
    let mut values = Vec::new();
    for piece in log.split('[').skip(1) {
        let Some((number, rest)) = piece.split_once(']') else { continue };
        let Some((value, _)) = rest.split_once(',') else { continue };
        if number.parse() == Ok(values.len() + 1)
            && let Ok(value) = value.trim().parse::<f64>()
        {
            values.push(value);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = include_str!("../../tests/data/perplexity.log");

    #[test]
    fn a_real_log() {
        let found = parse_perplexity(LOG).unwrap();
        assert_eq!(found.estimate, Estimate { value: 28.0433, error: Some(3.08147) });
        assert_eq!(found.chunk_nll.len(), 3);
        let mean = found.chunk_nll.iter().sum::<f64>() / 3.0;
        assert!((mean.exp() - 28.0433).abs() < 1e-3);
        assert!((found.chunk_nll[0].exp() - 27.8982).abs() < 1e-9);
    }

    #[test]
    fn a_log_without_variance_ends_with_its_last_figure() {
        let found =
            parse_perplexity(&format!("[1]288.0000,[2]288.0000,\n{NO_VARIANCE}\n")).unwrap();
        assert!((found.estimate.value - 288.0).abs() < 1e-9 && found.estimate.error.is_none());
        assert_eq!(found.chunk_nll.len(), 2);
        assert!(parse_perplexity(NO_VARIANCE).is_err());
    }

    #[test]
    fn logs_without_a_figure_are_refused() {
        for log in
            ["", "[1]2.0,[2]3.0,", "Final estimate: PPL = nan +/- nan", "Final estimate: PPL ="]
        {
            assert!(parse_perplexity(log).is_err(), "{log}");
        }
    }
}
