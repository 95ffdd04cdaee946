//! How much each token counts in the moments that matrices are fitted to.

use candle_core::{Device, Tensor};
use format::InputId;

use crate::TuningError;
use crate::costs::TokenCosts;

/// Costs above this quantile count as if they were there.
const CAP_QUANTILE: f64 = 0.999;

/// Weights of the tokens of all passages for each FFN input; their mean is 1.
#[derive(Debug)]
pub(crate) struct TokenWeights {
    /// Square roots, by layer: for gate and up, and for down; of each passage (tokens, 1).
    roots: Vec<[Vec<Tensor>; 2]>,
}

impl TokenWeights {
    /// Weights in proportion to the roots of `costs`, by passage and layer. In proportion to the costs themselves, which
    /// come from a single random direction and have a long tail, few tokens would decide: in the first layers of
    /// SmolLM2 the equivalent of an eighth of them.
    pub(crate) fn new(costs: &[Vec<TokenCosts>]) -> Result<Self, TuningError> {
        let n_layers = costs.first().map_or(0, Vec::len);
        let of = |layer: usize, values: fn(&TokenCosts) -> &[f32]| {
            roots(costs.iter().map(|passage| values(&passage[layer])).collect())
        };
        let layer = |n| Ok([of(n, |c| &c.gate_up)?, of(n, |c| &c.down)?]);
        Ok(Self { roots: (0..n_layers).map(layer).collect::<Result<_, TuningError>>()? })
    }

    /// `rows`, (tokens, any), of a passage at `input` so that their squares count as much as they should.
    pub(crate) fn apply(
        &self,
        input: InputId,
        passage: usize,
        rows: &Tensor,
    ) -> Result<Tensor, TuningError> {
        Ok(rows.broadcast_mul(&self.roots[input.layer][input.role as usize][passage])?)
    }
}

/// Square roots of the weights for `costs`.
fn roots(costs: Vec<&[f32]>) -> Result<Vec<Tensor>, TuningError> {
    let mut sorted: Vec<f32> = costs.concat();
    sorted.sort_by(f32::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return Ok(Vec::new()) };
    let cap = sorted[(last as f64 * CAP_QUANTILE) as usize];
    let weight = |cost: &f32| f64::from(cost.min(cap)).sqrt();
    let mean = sorted.iter().map(weight).sum::<f64>() / sorted.len() as f64;
    let root = |cost: &f32| match mean {
        // No token costs anything: all count alike.
        0.0 => 1.0,
        _ => (weight(cost) / mean).sqrt() as f32,
    };
    let column = |passage: &[f32]| {
        let values: Vec<f32> = passage.iter().map(root).collect();
        Ok(Tensor::from_vec(values, (passage.len(), 1), &Device::Cpu)?)
    };
    costs.into_iter().map(column).collect()
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
        let weights = TokenWeights::new(&all).unwrap();
        let ones = Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let squares = |role, passage, n| {
            let rows = ones.narrow(0, 0, n).unwrap();
            let input = InputId { layer: 0, role };
            let weighed = weights.apply(input, passage, &rows).unwrap();
            weighed
                .sqr()
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
                .iter()
                .map(|r| r[2])
                .collect::<Vec<_>>()
        };
        // The cap of three tokens is the second largest.
        let near = |found: Vec<f32>, expected: &[f32]| {
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
        };
        near(squares(InputRole::FfnIn, 0, 2), &[3.0 / 7.0, 9.0 / 7.0]);
        near(squares(InputRole::FfnIn, 1, 1), &[9.0 / 7.0]);
        near(squares(InputRole::FfnDown, 0, 2), &[1.0, 1.0]);
    }
}
