//! B5: the policy that lets nothing through which costs anything.

use std::collections::BTreeMap;

use anyhow::Result;
use seeddelta_lab::plan::{Entry, Policy};
use serde::Serialize;

use crate::bench::{Bench, RunResult};
use crate::cli::Cli;

/// Residuals per row that are tried, the fewest first.
const GRID: [usize; 3] = [16, 32, 64];
/// Loss in nats that the whole policy may cost.
const MAX_LOSS: f64 = 0.05;
/// A layer that costs more than this alone is no candidate.
const MAX_SINGLE_LOSS: f64 = 0.02;
/// A coded `ffn_down` must keep this cosine on the dense model's activations.
const MIN_DOWN_COSINE: f64 = 0.60;

/// The policy and how it did.
#[derive(Clone, Debug, Serialize)]
pub struct Auto {
    /// For `seeddelta-build --policy`.
    pub policy: Policy,
    /// The run with all of it.
    pub result: RunResult,
    /// Runs that were tried on the way.
    pub tried: usize,
}

/// Adds layers in the order of what they cost alone, each with the smallest K, and with `ffn_down` where its cosine
/// allows, as long as the greedy pack passes and the loss stays. `None` if no layer can be coded.
pub fn strict_policy(bench: &mut Bench, cli: &Cli, results: &[RunResult]) -> Result<Option<Auto>> {
    let mut single: Vec<(f64, usize)> = results
        .iter()
        .filter(|r| r.group == "B2" && r.pack_passed && r.loss_increase[0] <= MAX_SINGLE_LOSS)
        .map(|r| (r.loss_increase[0], r.layers[0]))
        .collect();
    single.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut best, mut tried) = (None::<(Policy, RunResult)>, 0);
    for (_, layer) in single {
        'forms: for with_down in [true, false] {
            for delta_k in GRID {
                let mut policy = best.as_ref().map_or_else(Policy::default, |b| b.0.clone());
                policy.tensors.extend(layer_entries(cli, layer, delta_k, with_down));
                tried += 1;
                let result = bench.run("B5", &format!("trial {tried}"), &[layer], &policy)?;
                let down = format!("blk.{layer}.ffn_down");
                let cosine = result.cost.tensors.iter().find(|t| t.tensor == down);
                let down_fits = cosine.is_none_or(|t| t.cosine >= MIN_DOWN_COSINE);
                if down_fits && result.pack_passed && result.loss_increase[0] <= MAX_LOSS {
                    eprintln!(
                        "B5: layer {layer}, K {delta_k}, down {with_down}: {}",
                        result.line()
                    );
                    best = Some((policy, result));
                    break 'forms;
                }
            }
        }
    }
    Ok(best.map(|(policy, mut result)| {
        result.name = format!("strict policy, {} tensors", policy.tensors.len());
        Auto { policy, result, tried }
    }))
}

fn layer_entries(cli: &Cli, layer: usize, delta_k: usize, down: bool) -> BTreeMap<String, Entry> {
    let targets = if down { &["gate", "up", "down"][..] } else { &["gate", "up"] };
    let entry = Entry { base: cli.base.clone(), delta_k };
    targets.iter().map(|t| (format!("blk.{layer}.ffn_{t}"), entry.clone())).collect()
}
