//! How much each token counts in the moments that matrices are fitted to.

use format::InputId;

use crate::TuningError;
use crate::costs::{Backward, TokenCosts};
use crate::transformer::Transformer;

/// Contexts that go through the layers and back together: their states are kept for every layer, and each layer's
/// matrices are read twice for all of them.
const CONTEXTS: usize = 8;

/// Costs above this quantile count as if they were there.
const CAP_QUANTILE: f64 = 0.999;

/// Weights of the tokens of all passages for each FFN input; their mean is 1.
#[derive(Debug)]
pub struct TokenWeights {
    /// Square roots, by layer: for gate and up, and for down; of each context one per token.
    roots: Vec<[Vec<Vec<f32>>; 2]>,
}

impl TokenWeights {
    /// Every token of `contexts` counts by the root of what an error in the output of a matrix costs there: of the trace of
    /// the Fisher information of the next-token distributions, estimated by one random direction per context. `heard` is
    /// told [`Self::n_steps`] times and says whether to stop.
    ///
    /// # Errors
    /// [`TuningError::Compute`], [`TuningError::Stopped`] or [`TuningError::Gguf`].
    pub fn curvature(
        model: &Transformer<'_>,
        contexts: &[Vec<u32>],
        heard: &mut dyn FnMut() -> bool,
    ) -> Result<Self, TuningError> {
        let mut backward = Backward::new(model, heard);
        let mut costs = Vec::with_capacity(contexts.len());
        for some in contexts.chunks(CONTEXTS) {
            let embedded = some.iter().map(|c| model.embed(c)).collect::<Result<_, _>>()?;
            costs.extend(backward.costs(embedded, costs.len())?);
        }
        Ok(Self::new(&costs))
    }

    /// What [`Self::curvature`] is in steps: every context through every layer and back.
    #[must_use]
    pub fn n_steps(model: &Transformer<'_>, n_contexts: usize) -> usize {
        2 * n_contexts * model.n_layers()
    }

    /// Weights in proportion to the roots of `costs`, by passage and layer. In proportion to the costs themselves, which
    /// come from a single random direction and have a long tail, few tokens would decide: in the first layers of
    /// SmolLM2 the equivalent of an eighth of them.
    pub(crate) fn new(costs: &[Vec<TokenCosts>]) -> Self {
        let n_layers = costs.first().map_or(0, Vec::len);
        let of = |layer: usize, values: fn(&TokenCosts) -> &[f32]| {
            roots(costs.iter().map(|passage| values(&passage[layer])).collect())
        };
        let layer = |n| [of(n, |c| &c.gate_up), of(n, |c| &c.down)];
        Self { roots: (0..n_layers).map(layer).collect() }
    }

    /// Makes the squares of `rows`, [any, tokens], of context number `context` at `input` count as much as they should.
    pub(crate) fn apply(&self, input: InputId, context: usize, rows: &mut [f32]) {
        let roots = &self.roots[input.layer][input.role as usize][context];
        let width = (rows.len() / roots.len()).max(1);
        for (row, root) in rows.chunks_mut(width).zip(roots) {
            row.iter_mut().for_each(|v| *v *= root);
        }
    }
}

/// One over the root of each token's mean square, where `state` is [n_embd, tokens, any].
pub(crate) fn roots_by_state(state: &[f32], n_embd: usize, n_tokens: usize) -> Vec<f32> {
    let of_token = |token| {
        let rows = state.chunks(n_embd).skip(token).step_by(n_tokens);
        let values: Vec<f32> = rows.flatten().copied().collect();
        inverse_root_mean_square(&values)
    };
    (0..n_tokens).map(of_token).collect()
}

/// 1 over the root of the mean square; 1 of zeros.
fn inverse_root_mean_square(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    match (values.len() as f64 / sum).sqrt() as f32 {
        root if root.is_finite() => root,
        _ => 1.0,
    }
}

/// Square roots of the weights for `costs`.
fn roots(costs: Vec<&[f32]>) -> Vec<Vec<f32>> {
    let mut sorted: Vec<f32> = costs.concat();
    sorted.sort_by(f32::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return Vec::new() };
    let cap = sorted[(last as f64 * CAP_QUANTILE) as usize];
    let weight = |cost: &f32| f64::from(cost.min(cap)).sqrt();
    let mean = sorted.iter().map(weight).sum::<f64>() / sorted.len() as f64;
    let root = |cost: &f32| match mean {
        // No token costs anything: all count alike.
        0.0 => 1.0,
        _ => (weight(cost) / mean).sqrt() as f32,
    };
    costs.into_iter().map(|context| context.iter().map(root).collect()).collect()
}

#[cfg(test)]
mod tests {
    use format::InputRole;

    use super::*;

    fn costs(gate_up: &[f32], down: &[f32]) -> Vec<TokenCosts> {
        vec![TokenCosts { gate_up: gate_up.to_vec(), down: down.to_vec() }]
    }

    #[test]
    fn squares_count_in_proportion_to_the_roots_of_the_costs_over_all_passages() {
        let all = [costs(&[1.0, 9.0], &[0.0, 0.0]), costs(&[16.0], &[0.0])];
        let weights = TokenWeights::new(&all);
        let squares = |role, context, n: usize| {
            let mut rows = vec![1.0; 3 * n];
            weights.apply(InputId { layer: 0, role }, context, &mut rows);
            rows.chunks(3).map(|row| row[2] * row[2]).collect::<Vec<f32>>()
        };
        // The cap of three tokens is the second largest.
        let near = |found: Vec<f32>, expected: &[f32]| {
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
        };
        near(squares(InputRole::FfnIn, 0, 2), &[3.0 / 7.0, 9.0 / 7.0]);
        near(squares(InputRole::FfnIn, 1, 1), &[9.0 / 7.0]);
        near(squares(InputRole::FfnDown, 0, 2), &[1.0, 1.0]);
    }

    #[test]
    fn states_are_divided_by_their_size() {
        let roots = roots_by_state(&[3.0, 4.0, 0.0, 0.0, 1e3, 0.0], 2, 3);
        let expected = [2f32.sqrt() / 5.0, 1.0, 2f32.sqrt() / 1e3];
        assert!(roots.iter().zip(expected).all(|(r, e)| (r - e).abs() < 1e-6), "{roots:?}");
    }
}
