//! What the runs together say.

use serde::Serialize;

use super::bench::RunResult;
use super::stats::{Correlation, Threshold, spearman, threshold};

/// A loss increase above this, in nats, makes a run a bad one for the thresholds.
pub const BAD_LOSS: f64 = 0.05;

/// A quantity known before a run, larger where things are worse.
#[derive(Clone, Debug, Serialize)]
pub struct Foreteller {
    /// Its name.
    pub name: &'static str,
    /// Rank correlation with the loss increase over all runs.
    pub correlation: Option<Correlation>,
    /// The same over runs of several layers only.
    pub correlation_stacks: Option<Correlation>,
    /// Recommended limit.
    pub threshold: Option<Threshold>,
    /// Whether the limit would have stopped the first cliff.
    pub foresaw_cliff: Option<bool>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Quantities.
    pub foretellers: Vec<Foreteller>,
    /// The first run of B4 that fell off.
    pub first_cliff: Option<String>,
    /// Layers by what they cost alone, the most fragile first: layer and loss increase.
    pub fragile: Vec<(usize, f64)>,
}

fn value(name: &str, run: &RunResult) -> f64 {
    match name {
        "worst gap" => run.cost.worst_gap(),
        "1 - worst cosine" => 1.0 - run.cost.worst_cosine(),
        _ => run.cost.stack_cost,
    }
}

impl Findings {
    /// From all runs but the strict policy's.
    #[must_use]
    pub fn of(runs: &[RunResult]) -> Self {
        let cliff = runs.iter().find(|r| r.group == "B4" && r.cliff);
        let pairs = |name: &str, stacks: bool| -> Vec<(f64, f64)> {
            let counted = runs.iter().filter(|r| !stacks || r.layers.len() > 1);
            counted.map(|r| (value(name, r), r.loss_increase[0])).collect()
        };
        let names = ["worst gap", "1 - worst cosine", "stack_cost"];
        let foreteller = |name: &'static str| {
            let marked = runs.iter().map(|r| (value(name, r), r.loss_increase[0] > BAD_LOSS));
            let threshold = threshold(&marked.collect::<Vec<_>>());
            Foreteller {
                name,
                correlation: spearman(&pairs(name, false)),
                correlation_stacks: spearman(&pairs(name, true)),
                foresaw_cliff: threshold.and_then(|t| cliff.map(|c| value(name, c) > t.value)),
                threshold,
            }
        };
        let single = runs.iter().filter(|r| r.group == "B2");
        let mut fragile: Vec<_> = single.map(|r| (r.layers[0], r.loss_increase[0])).collect();
        fragile.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self {
            foretellers: names.map(foreteller).into(),
            first_cliff: cliff.map(|c| c.name.clone()),
            fragile,
        }
    }

    /// Lines for the terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines =
            vec![format!("first cliff: {}", self.first_cliff.as_deref().unwrap_or("none"))];
        for f in &self.foretellers {
            let correlation = |c: Option<Correlation>| match c {
                Some(c) => format!("{:.2} ({:.2} to {:.2}, n {})", c.rho, c.low, c.high, c.n),
                None => "not defined".to_owned(),
            };
            let threshold = f.threshold.map_or("none".to_owned(), |t| {
                let (caught, passed) = (100.0 * t.caught, 100.0 * t.passed);
                format!(
                    "{:.4} (stops {caught:.0} % of bad, passes {passed:.0} % of good runs)",
                    t.value
                )
            });
            lines.push(format!(
                "{}: rank correlation {}, stacks only {}; threshold {threshold}",
                f.name,
                correlation(f.correlation),
                correlation(f.correlation_stacks),
            ));
        }
        lines.join("\n")
    }
}
