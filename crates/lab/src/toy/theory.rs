//! Expected squared errors, from the construction of a matrix alone.
//!
//! The error is `E = sum_ri h_i (W - W^)[r, i]^2`, with input weights h (white inputs: 1). W is m x n
//! (m = d_out rows, n = d_in columns) and N is white Gaussian noise of level s added to it. A prediction
//! is a mean and a variance; variances of independent parts add up.
//!
//! * **What no parameter reaches** ([`noise`]): `s^2 sum h`, a weighted chi-square with variance
//!   `2 s^4 sum h^2`.
//! * **Linear bases** ([`shared_parameter`]): the entries that share one parameter lose their h-weighted
//!   mean; `s^2 (sum h - sum h^2 / sum h)` is left. White: s^2 times (entries - parameters).
//! * **Low rank** ([`truncated_noise`]): the discarded singular values without noise (Eckart and Young,
//!   Psychometrika 1936); with noise, second-order perturbation of the kept ones.
//! * **Delta** ([`trimmed`]): order statistics: what n - K of n squared Gaussians sum up to when the K
//!   largest are taken out.
//! * **Storage** ([`rounding`]): an F16 parameter is off by a uniform error of at most half a unit u in the
//!   last place: `u^2 / 12`, with variance `u^4 / 180`.

use std::f64::consts::{PI, SQRT_2};
use std::ops::{Add, AddAssign};

/// Expected squared error and its variance over noise and rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Expected squared error.
    pub energy: f64,
    /// Variance of the squared error around it.
    pub variance: f64,
}

impl Prediction {
    /// An error known without doubt.
    #[must_use]
    pub fn exact(energy: f64) -> Self {
        Self { energy, variance: 0.0 }
    }
}

impl Add for Prediction {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { energy: self.energy + other.energy, variance: self.variance + other.variance }
    }
}

impl AddAssign for Prediction {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Prediction {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

/// Noise of level `sigma` on entries with weights `h` that no parameter reaches.
#[must_use]
pub fn noise(sigma: f64, h: impl Iterator<Item = f64>) -> Prediction {
    let s2 = sigma * sigma;
    h.map(|h| Prediction { energy: s2 * h, variance: 2.0 * s2 * s2 * h * h }).sum()
}

/// Noise of level `sigma` on entries with weights `h` after their weighted mean is taken out.
///
/// A quadratic form in the noise with the matrix `M = diag(h) - h h^T / sum h`: mean `s^2 tr M`, variance
/// `2 s^4 tr M^2`.
#[must_use]
pub fn shared_parameter(sigma: f64, h: &[f64]) -> Prediction {
    let sum = |power: i32| h.iter().map(|h| h.powi(power)).sum::<f64>();
    let (h1, h2, h3) = (sum(1), sum(2), sum(3));
    let s2 = sigma * sigma;
    // both are 0 for a single entry, and must not become negative by rounding
    let traces = (h1 - h2 / h1, h2 - 2.0 * h3 / h1 + (h2 / h1).powi(2));
    Prediction { energy: s2 * traces.0.max(0.0), variance: 2.0 * s2 * s2 * traces.1.max(0.0) }
}

/// Best approximation of rank `rank` of a matrix with `singular` values (descending, all of them) plus
/// noise of level `sigma`, white inputs.
///
/// With k signal values s_j the squared i-th singular value of the noisy matrix has, to second order in
/// the noise, the mean `s_i^2 + sigma^2 (m + n - 2k + 1 + sum_{j != i} 2 s_i^2 / (s_i^2 - s_j^2))`
/// (perturbation of an eigenvalue; for a lone strong value this is `s^2 + sigma^2 (m + n - 1)`, the
/// finite form of the spiked model's limit, Benaych-Georges and Nadakuditi 2012). The error is the whole
/// energy less the first `rank` of these. Holds for sigma sqrt(m + n) well below the distance of the
/// kept values from the others; `rank` must not exceed k.
#[must_use]
pub fn truncated_noise(
    sigma: f64,
    (m, n): (usize, usize),
    singular: &[f64],
    rank: usize,
) -> Prediction {
    let (m, n, k, r) = (m as f64, n as f64, singular.len() as f64, rank as f64);
    let (kept, left) = singular.split_at(rank);
    let mut captured = r * (m + n - 2.0 * k + r);
    for s in kept {
        captured += left.iter().map(|t| 2.0 * s * s / (s * s - t * t)).sum::<f64>();
    }
    let freedom = m * n - captured;
    let discarded: f64 = left.iter().map(|s| s * s).sum();
    let s2 = sigma * sigma;
    Prediction {
        energy: discarded + s2 * freedom,
        variance: 4.0 * s2 * discarded + 2.0 * s2 * s2 * freedom.max(0.0),
    }
}

/// Sum of the n - k smallest of n squared standard Gaussians.
///
/// Given the value t of the next larger one, the m = n - k smaller ones are independent Gaussians cut to
/// |z| < t, with mean square mu(t) and variance v(t) of the square. So the sum has the mean `E m mu(t)` and
/// the variance `E m v(t) + Var m mu(t)`, where |t| is the (m + 1)-th order statistic of n.
#[must_use]
pub fn trimmed(n: usize, k: usize) -> Prediction {
    if k >= n {
        return Prediction::default();
    }
    if k == 0 {
        return noise(1.0, std::iter::repeat_n(1.0, n));
    }
    let (n, m) = (n as f64, (n - k) as f64);
    let ln_factorial = |v: f64| libm::lgamma(v + 1.0);
    let ln_ways = ln_factorial(n) - ln_factorial(m) - ln_factorial(n - 1.0 - m);
    let chance_of = |t: f64| {
        let (below, above) = (share_below(t), libm::erfc(t / SQRT_2));
        let ln = ln_ways + m * below.ln() + (n - 1.0 - m) * above.ln();
        if below > 0.0 && above > 0.0 { ln.exp() * 2.0 * density(t) } else { 0.0 }
    };
    // F(t) has a Beta distribution: nothing counts twelve standard deviations away from its mean
    let center = (m + 1.0) / (n + 1.0);
    let width = 12.0 * (center * (1.0 - center) / (n + 2.0)).sqrt();
    let (low, high) = (quantile(center - width), quantile(center + width));
    let steps = 2000usize;
    let step = (high - low) / steps as f64;
    let (mut chance, mut mean, mut square, mut spread) = (0.0, 0.0, 0.0, 0.0);
    for i in 1..steps {
        let t = low + step * i as f64;
        let weight = chance_of(t) * step;
        let (mu, v) = cut_moments(t);
        chance += weight;
        mean += weight * m * mu;
        square += weight * (m * mu).powi(2);
        spread += weight * m * v;
    }
    debug_assert!((chance - 1.0).abs() < 1e-3, "order statistic integrates to {chance}");
    Prediction { energy: mean, variance: spread + square - mean * mean }
}

/// Mean and variance of z^2 for a standard Gaussian with |z| < t, by parts.
fn cut_moments(t: f64) -> (f64, f64) {
    let below = share_below(t);
    let m2 = below - 2.0 * t * density(t);
    let m4 = 3.0 * m2 - 2.0 * t.powi(3) * density(t);
    let mu = m2 / below;
    (mu, (m4 / below - mu * mu).max(0.0))
}

/// t with P(|z| < t) = `share`, in 0..=9.
fn quantile(share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 9.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let below = share_below(middle) < share;
        *(if below { &mut low } else { &mut high }) = middle;
    }
    low
}

/// P(|z| < t).
fn share_below(t: f64) -> f64 {
    libm::erf(t / SQRT_2)
}

fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// Error of storing `value` plus noise of level `sigma` as F16, where the error is counted with `weight`.
///
/// `weight` is the sum of h over all entries that hold the value: they share its error. With noise the
/// number may lie in several binades (between powers of two), each with its own unit in the last place u:
/// the squared error has the mean `E u^2 / 12` and the mean square `E u^4 / 80`.
#[must_use]
pub fn rounding(value: f64, sigma: f64, weight: f64) -> Prediction {
    let (mut square, mut fourth) = (0.0, 0.0);
    let reach = value.abs() + 9.0 * sigma;
    if reach == 0.0 {
        return Prediction::default();
    }
    let top = reach.log2().floor() as i32;
    for exponent in (-15..=top).rev() {
        let low = if exponent == -15 { 0.0 } else { 2f64.powi(exponent) };
        let chance = share_between(value, sigma, low, 2f64.powi(exponent + 1));
        let ulp2 = f16_ulp(2f64.powi(exponent)).powi(2);
        square += chance * ulp2 / 12.0;
        fourth += chance * ulp2 * ulp2 / 80.0;
    }
    Prediction {
        energy: weight * square,
        variance: weight * weight * (fourth - square * square).max(0.0),
    }
}

/// P(low <= |value + sigma z| < high) for a standard Gaussian z.
fn share_between(value: f64, sigma: f64, low: f64, high: f64) -> f64 {
    if sigma == 0.0 {
        return f64::from(u8::from((low..high).contains(&value.abs())));
    }
    let below = |t: f64| 0.5 * libm::erfc((value - t) / (sigma * SQRT_2));
    (below(high) - below(low)) + (below(-low) - below(-high))
}

/// Distance of neighbouring F16 numbers at `value`: 10 bits after the leading one, and 2^-24 below 2^-14.
#[must_use]
pub fn f16_ulp(value: f64) -> f64 {
    2f64.powf((value.abs().log2().floor() - 10.0).max(-24.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    fn mean_and_variance(samples: &[f64]) -> (f64, f64) {
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        (mean, samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n)
    }

    fn gaussians(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
        (0..n).map(|_| StandardNormal.sample(rng)).collect()
    }

    #[test]
    fn trimmed_sums_agree_with_sampling() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (n, k) in [(5, 0), (5, 1), (5, 4), (40, 3), (64, 16), (64, 63), (300, 1)] {
            let samples: Vec<f64> = (0..20_000)
                .map(|_| {
                    let mut z: Vec<f64> =
                        gaussians(&mut rng, n).into_iter().map(|z| z * z).collect();
                    z.sort_by(f64::total_cmp);
                    z[..n - k].iter().sum()
                })
                .collect();
            let (mean, variance) = mean_and_variance(&samples);
            let expected = trimmed(n, k);
            let standard_error = (variance / 20_000.0).sqrt();
            assert!((expected.energy - mean).abs() < 4.0 * standard_error, "{n} {k}: {mean}");
            let ratio = expected.variance / variance;
            // sampled variances of small order statistics are themselves uncertain: heavy tails
            assert!((ratio - 1.0).abs() < 0.2, "{n} {k}: variance {ratio}");
        }
        assert_eq!(trimmed(7, 7), Prediction::default());
        assert_eq!(trimmed(7, 0).energy, 7.0);
    }

    #[test]
    fn weighted_means_agree_with_sampling() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let h = [0.5, 1.0, 2.0, 4.0];
        let samples: Vec<f64> = (0..50_000)
            .map(|_| {
                let z = gaussians(&mut rng, 4);
                let mean = z.iter().zip(h).map(|(z, h)| z * h).sum::<f64>() / 7.5;
                z.iter().zip(h).map(|(z, h)| h * (z - mean).powi(2)).sum()
            })
            .collect();
        let (mean, variance) = mean_and_variance(&samples);
        let expected = shared_parameter(1.0, &h);
        assert!((expected.energy / mean - 1.0).abs() < 0.02);
        assert!((expected.variance / variance - 1.0).abs() < 0.05);
        assert!((shared_parameter(3.0, &[1.0; 10]).energy - 9.0 * 9.0).abs() < 1e-12);
        assert_eq!(shared_parameter(1.0, &[0.7]).energy, 0.0);
    }

    #[test]
    fn truncation_counts_degrees_of_freedom() {
        // rank as of the signal: s^2 (m - k)(n - k)
        let p = truncated_noise(0.1, (10, 8), &[50.0, 20.0], 2);
        assert!((p.energy - 0.01 * 8.0 * 6.0).abs() < 1e-12);
        // a signal that is far weaker than the kept one counts as noise does
        let p = truncated_noise(0.1, (10, 8), &[50.0, 1e-9], 1);
        assert!((p.energy - 0.01 * 9.0 * 7.0).abs() < 1e-9);
    }

    #[test]
    fn rounding_takes_the_binades_that_noise_reaches() {
        let exact = rounding(1.5, 0.0, 2.0);
        assert!((exact.energy - 2.0 * 2f64.powi(-20) / 12.0).abs() < 1e-18);
        assert!((exact.variance - 4.0 * 2f64.powi(-40) / 180.0).abs() < 1e-24);
        // at 2 half of the values have the unit of [1, 2), half that of [2, 4)
        let noisy = rounding(-2.0, 0.01, 1.0).energy;
        assert!((noisy - 2.5 * 2f64.powi(-20) / 12.0).abs() < 1e-12);
        assert_eq!(rounding(0.0, 0.0, 1.0), Prediction::default());
    }

    #[test]
    fn units_in_the_last_place() {
        assert_eq!(f16_ulp(1.0), 2f64.powi(-10));
        assert_eq!(f16_ulp(-3.0), 2f64.powi(-9));
        assert_eq!(f16_ulp(1e-6), 2f64.powi(-24));
    }
}
