//! Alternating passes and what their times amount to.

use std::time::Instant;

use anyhow::{Context, Result};
use ggml::product::{Products, Routing, ThreadPool};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::bench::contenders::Contender;
use crate::bench::read::Reading;

/// What was measured, for every round.
#[derive(Debug)]
pub struct Seconds {
    /// For one product, `contenders[contender][round]`.
    pub contenders: Vec<Vec<f64>>,
    /// For a plain sum over all copies of ours; empty if there was none.
    pub reading: Vec<f64>,
}

/// What all contenders multiply with.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// [d_in, n_tokens]
    pub x: &'a [f32],
    /// Which experts, in every product of a pass; empty without experts.
    pub routings: &'a [Routing],
}

/// Measures every contender, and `reading` between them.
pub fn measure(
    pool: &ThreadPool,
    contenders: &[Contender],
    Input { x, routings }: Input<'_>,
    rounds: usize,
    reading: Option<&Reading>,
) -> Result<Seconds> {
    let mut products = Vec::new();
    for contender in contenders {
        let made = match routings {
            [] => Products::new(pool, &contender.copies, x),
            _ => Products::routed(pool, &contender.copies, x, routings),
        };
        products.push(made.with_context(|| contender.name.to_owned())?);
    }
    let mut seconds = vec![Vec::with_capacity(rounds); contenders.len()];
    let mut read = Vec::new();
    // Drawn between the passes only; hidden where stderr is no terminal.
    let style = ProgressStyle::with_template("round {pos}/{len} [{elapsed}, ~{eta} left]");
    let bar = ProgressBar::new(rounds as u64).with_style(style.expect("a valid template"));
    // The first round touches all memory and starts the threads; it does not count.
    for round in 0..=rounds {
        for (contender, products) in products.iter_mut().enumerate() {
            let start = Instant::now();
            products.run().with_context(|| contenders[contender].name.to_owned())?;
            let elapsed = start.elapsed().as_secs_f64();
            if round > 0 {
                let n_products = contenders[contender].copies.len() * routings.len().max(1);
                seconds[contender].push(elapsed / n_products as f64);
            }
        }
        if let Some(reading) = reading {
            let start = Instant::now();
            reading.run();
            let elapsed = start.elapsed().as_secs_f64();
            if round > 0 {
                read.push(elapsed);
            }
        }
        bar.set_position(round as u64);
    }
    bar.finish_and_clear();
    Ok(Seconds { contenders: seconds, reading: read })
}

/// A sample's median and spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// A quarter of the sample is below.
    pub q1: f64,
    /// Half of the sample is below.
    pub median: f64,
    /// A quarter of the sample is above.
    pub q3: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of a sample that is not empty.
    pub fn of(sample: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = sample.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            sorted[below] + (sorted[above] - sorted[below]) * place.fract()
        };
        Self {
            min: quantile(0.0),
            q1: quantile(0.25),
            median: quantile(0.5),
            q3: quantile(0.75),
            max: quantile(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!((spread.q1, spread.q3), (1.75, 3.25));
        assert_eq!(Spread::of([7.0]).q3, 7.0);
    }
}
