//! Rank correlation with confidence, and thresholds.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// Spearman's rank correlation with a percentile bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Correlation {
    /// Correlation of the ranks.
    pub rho: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Pairs.
    pub n: usize,
}

/// Rank correlation of the pairs; `None` with less than four, or if one side is constant.
#[must_use]
pub fn spearman(pairs: &[(f64, f64)]) -> Option<Correlation> {
    let n = pairs.len();
    let rho = (n >= 4).then(|| rank_correlation(pairs)).flatten()?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let sample: Vec<_> = (0..n).map(|_| pairs[rng.random_range(0..n)]).collect();
            rank_correlation(&sample)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let at = |share: f64| resampled[((resampled.len() - 1) as f64 * share).round() as usize];
    Some(Correlation { rho, low: at(0.025), high: at(0.975), n })
}

fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let a = ranks(&pairs.iter().map(|p| p.0).collect::<Vec<_>>());
    let b = ranks(&pairs.iter().map(|p| p.1).collect::<Vec<_>>());
    let mean = (pairs.len() as f64 - 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    let spread = sum(&a, &a) * sum(&b, &b);
    (spread > 0.0).then(|| sum(&a, &b) / spread.sqrt())
}

/// Ranks from 0; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied =
            order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count();
        for &i in &order[start..start + tied] {
            ranks[i] = start as f64 + (tied as f64 - 1.0) / 2.0;
        }
        start += tied;
    }
    ranks
}

/// A limit for a metric that is larger where things are worse.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Threshold {
    /// Runs up to this are taken to be good.
    pub value: f64,
    /// Share of bad runs above it.
    pub caught: f64,
    /// Share of good runs up to it.
    pub passed: f64,
}

/// The limit with the best mean of both shares; `None` unless there are good and bad runs.
#[must_use]
pub fn threshold(runs: &[(f64, bool)]) -> Option<Threshold> {
    let n_bad = runs.iter().filter(|r| r.1).count();
    let n_good = runs.len() - n_bad;
    if n_bad == 0 || n_good == 0 {
        return None;
    }
    let at = |value: f64| {
        let caught = runs.iter().filter(|r| r.1 && r.0 > value).count() as f64 / n_bad as f64;
        let passed = runs.iter().filter(|r| !r.1 && r.0 <= value).count() as f64 / n_good as f64;
        Threshold { value, caught, passed }
    };
    let all = runs.iter().map(|r| at(r.0));
    all.max_by(|a, b| {
        let score = |t: &Threshold| t.caught + t.passed;
        score(a).total_cmp(&score(b)).then(b.value.total_cmp(&a.value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_decide_not_values() {
        let up: Vec<(f64, f64)> = (0..8).map(|i| (f64::from(i), f64::from(i).exp())).collect();
        let c = spearman(&up).unwrap();
        assert!((c.rho - 1.0).abs() < 1e-12 && c.low > 0.99);
        let down: Vec<_> = up.iter().map(|&(a, b)| (a, -b)).collect();
        assert!((spearman(&down).unwrap().rho + 1.0).abs() < 1e-12);
        // by hand: ranks 0, 1.5, 1.5, 3 and 1, 0, 2, 3: covariance 3, spreads 4.5 and 5
        let tied = [(1.0, 5.0), (2.0, 1.0), (2.0, 6.0), (9.0, 7.0)];
        assert!((spearman(&tied).unwrap().rho - 3.0 / (4.5f64 * 5.0).sqrt()).abs() < 1e-12);
        assert_eq!(spearman(&[(1.0, 1.0); 9]), None);
        assert_eq!(spearman(&up[..3]), None);
    }

    #[test]
    fn noise_has_a_wide_interval_around_zero() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let pairs: Vec<(f64, f64)> = (0..40).map(|_| (rng.random(), rng.random())).collect();
        let c = spearman(&pairs).unwrap();
        assert!(c.low < 0.0 && c.high > 0.0, "{c:?}");
    }

    #[test]
    fn the_threshold_parts_good_from_bad() {
        let runs = [(0.1, false), (0.2, false), (0.3, false), (0.4, true), (0.9, true)];
        assert_eq!(threshold(&runs), Some(Threshold { value: 0.3, caught: 1.0, passed: 1.0 }));
        assert_eq!(threshold(&runs[..3]), None);
    }
}
