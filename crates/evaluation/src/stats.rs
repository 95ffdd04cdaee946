//! Means, standard errors, medians.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A figure with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; `null` if there are too few samples for one.
    pub error: Option<f64>,
}

impl Estimate {
    /// Mean of `samples` and its standard error; `None` for no samples or one that is not finite.
    #[must_use]
    pub fn mean(samples: &[f64]) -> Option<Self> {
        let n = samples.len() as f64;
        let value = samples.iter().sum::<f64>() / n;
        if samples.is_empty() || !value.is_finite() {
            return None;
        }
        let squares: f64 = samples.iter().map(|s| (s - value).powi(2)).sum();
        let error = (samples.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Some(Self { value, error })
    }

    /// exp(value) - 1, the relative difference that belongs to a difference of logarithms.
    #[must_use]
    pub fn exp_m1(self) -> Self {
        let value = self.value.exp_m1();
        Self { value, error: self.error.map(|e| e * (value + 1.0)) }
    }
}

/// The middle value, or the mean of the two; `None` for no samples.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Values of single chunks from running means: `n * mean_n - (n - 1) * mean_(n-1)`.
#[must_use]
pub fn from_running_means(means: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let chunk = |(i, mean): (usize, &f64)| {
        let total = (i + 1) as f64 * mean;
        let value = total - sum;
        sum = total;
        value
    };
    means.iter().enumerate().map(chunk).collect()
}

/// Mean difference of paired samples, `a - b`; `None` for different numbers of them or none.
#[must_use]
pub fn paired_difference(a: &[f64], b: &[f64]) -> Option<Estimate> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    if a.len() == b.len() { Estimate::mean(&differences) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        let mean = Estimate::mean(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(mean.value, 2.0);
        assert!((mean.error.unwrap() - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::mean(&[5.0]).unwrap().error, None);
        assert_eq!(Estimate::mean(&[]), None);
        assert_eq!(Estimate::mean(&[1.0, f64::NAN]), None);
        assert_eq!(
            (median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])),
            (Some(2.0), Some(2.5), None)
        );
    }

    proptest! {
        #[test]
        fn running_means_give_the_samples_back(samples in prop::collection::vec(-10.0..10.0f64, 1..40)) {
            let mut sum = 0.0;
            let means: Vec<f64> = samples.iter().enumerate().map(|(i, s)| {
                sum += s;
                sum / (i + 1) as f64
            }).collect();
            for (found, expected) in from_running_means(&means).iter().zip(&samples) {
                prop_assert!((found - expected).abs() < 1e-9);
            }
        }

        /// What both have in common does not matter.
        #[test]
        fn pairs_cancel_what_is_shared(
            pairs in prop::collection::vec((-5.0..5.0f64, -1.0..1.0f64), 2..30), shift in -100.0..100.0f64,
        ) {
            let a: Vec<f64> = pairs.iter().map(|(shared, own)| 1000.0 * shared + own + shift).collect();
            let b: Vec<f64> = pairs.iter().map(|(shared, _)| 1000.0 * shared).collect();
            let own: Vec<f64> = pairs.iter().map(|(_, own)| own + shift).collect();
            let (found, expected) = (paired_difference(&a, &b).unwrap(), Estimate::mean(&own).unwrap());
            prop_assert!((found.value - expected.value).abs() < 1e-6);
            prop_assert!((found.error.unwrap() - expected.error.unwrap()).abs() < 1e-6);
            prop_assert_eq!(paired_difference(&a, &b[1..]), None);
        }
    }
}
