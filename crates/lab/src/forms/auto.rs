//! B5: the policy that lets nothing through which costs anything, for `seeddelta-build --policy auto` too.

use format::MatrixId;
use serde::Serialize;

use crate::forms::Error;
use crate::forms::bench::{Bench, RunResult};
use crate::forms::plan::{Entry, LAST, Policy};

/// Residuals per row of the runs that say what a layer costs alone.
pub const SINGLE_K: usize = 16;
/// Residuals per row that are tried, the fewest first.
const GRID: [usize; 3] = [16, 32, 64];
/// Loss in nats that the whole policy may cost, in each context length.
const MAX_LOSS: f64 = 0.02;
/// Share of the exact answers that it may cost.
const MAX_LOST_ANSWERS: f64 = 0.01;
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

/// Adds layers in the order of what they cost alone (runs of B2 in `results`), each with the smallest K, and with
/// `ffn_down` where its cosine allows, as long as the greedy pack passes, the loss stays and the coded tensors are
/// smaller than the dense ones. `None` if no layer can be coded.
///
/// # Errors
/// Those of [`Bench::run`].
pub fn strict_policy(
    bench: &mut Bench,
    base: &str,
    results: &[RunResult],
    say: &mut dyn FnMut(&str),
) -> Result<Option<Auto>, Error> {
    let mut single: Vec<(f64, usize)> = results
        .iter()
        .filter(|r| r.group == "B2" && r.loss_increase[0] <= MAX_SINGLE_LOSS)
        .map(|r| (r.loss_increase[0], r.layers[0]))
        .collect();
    single.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut best, mut tried) = (None::<(Policy, RunResult)>, 0);
    for (_, layer) in single {
        for (with_down, delta_k) in forms() {
            let mut policy = best.as_ref().map_or_else(Policy::default, |b| b.0.clone());
            policy.code(layer, &Entry { base: base.to_owned(), delta_k }, with_down);
            tried += 1;
            let result = bench.run("B5", &format!("trial {tried}"), &[layer], &policy)?;
            if passes(&result, layer) {
                let line = result.line();
                say(&format!("B5: layer {layer}, K {delta_k}, down {with_down}: {line}"));
                best = Some((policy, result));
                break;
            }
        }
    }
    Ok(best.map(|(policy, mut result)| {
        result.name = format!("strict policy, {} tensors", policy.tensors.len());
        Auto { policy, result, tried }
    }))
}

/// With `ffn_down` before without, fewer residuals before more.
fn forms() -> impl Iterator<Item = (bool, usize)> {
    [true, false].into_iter().flat_map(|down| GRID.map(|k| (down, k)))
}

fn passes(result: &RunResult, layer: usize) -> bool {
    let down = MatrixId { layer, role: LAST }.to_string();
    let cost = &result.cost;
    let down_fits = cost.tensors.iter().all(|t| t.tensor != down || t.cosine >= MIN_DOWN_COSINE);
    let smaller = cost.tensors.iter().all(|t| t.bytes < t.dense_bytes);
    let costs_nothing = result.loss_increase.iter().all(|&l| l <= MAX_LOSS)
        && result.lost_answers <= MAX_LOST_ANSWERS;
    down_fits && smaller && result.pack_passed && costs_nothing
}
