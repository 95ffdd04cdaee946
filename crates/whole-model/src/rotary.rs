//! Rotary positions as one differentiable operation.
//!
//! Source: Su et al., "RoFormer", 2021; pairings and factors as in ggml's `ggml_rope_ext` without YaRN.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::config::Config;
use crate::fused::floats;

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Values 2 i and 2 i + 1: ggml's `GGML_ROPE_TYPE_NORMAL`.
    Neighbours,
    /// Values i and i + n / 2: ggml's `GGML_ROPE_TYPE_NEOX`.
    Halves,
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    pairing: Pairing,
    /// Angle per position of each pair; values of a head behind these pairs do not turn.
    frequencies: Vec<f32>,
    /// Factor of the values that turn.
    magnitude: f32,
}

impl Rotary {
    /// Frequencies `scale * base^(-2 i / n_rotated)`.
    pub(crate) fn new(
        pairing: Pairing,
        n_rotated: usize,
        base: f32,
        scale: f32,
        magnitude: f32,
    ) -> Self {
        let frequency = |i| f64::from(base).powf(-2.0 * i as f64 / n_rotated as f64);
        let frequencies = (0..n_rotated / 2).map(|i| (f64::from(scale) * frequency(i)) as f32);
        Self { pairing, frequencies: frequencies.collect(), magnitude }
    }

    /// Divides the frequencies by `factors`.
    pub(crate) fn divide(&mut self, factors: &[f32]) {
        self.frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
    }

    /// Cosines and sines of the first `n_tokens` positions, `[n_pairs, n_tokens]`.
    fn turns(&self, n_tokens: usize) -> Turns {
        let angles = (0..n_tokens).flat_map(|t| self.frequencies.iter().map(move |f| t as f32 * f));
        let turn = |angle: f32| (self.magnitude * angle.cos(), self.magnitude * angle.sin());
        Turns { pairing: self.pairing, turns: angles.map(turn).collect(), n_tokens }
    }
}

struct Turns {
    pairing: Pairing,
    turns: Vec<(f32, f32)>,
    n_tokens: usize,
}

/// All ways in which a model turns queries and keys, for texts of one length.
#[derive(Clone)]
pub(crate) struct Rotations(Vec<Arc<Turns>>);

impl Rotations {
    pub(crate) fn of(config: &Config, n_tokens: usize) -> Self {
        Self(config.rotaries.iter().map(|rotary| Arc::new(rotary.turns(n_tokens))).collect())
    }

    /// Turns `x`, (heads, tokens, head_dim) in candle's order, in the way number `index`.
    pub(crate) fn apply(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(Rotate { turns: Arc::clone(&self.0[index]), is_back: false })
    }
}

/// Turns the pairs of every head by its token's position.
struct Rotate {
    turns: Arc<Turns>,
    /// The other way round, which the derivative is.
    is_back: bool,
}

impl Rotate {
    fn head(&self, y: &mut [f32], turns: &[(f32, f32)]) {
        let n = turns.len();
        for (i, (cos, sin)) in turns.iter().enumerate() {
            let (a, b) = match self.turns.pairing {
                Pairing::Neighbours => (2 * i, 2 * i + 1),
                Pairing::Halves => (i, i + n),
            };
            let sin = if self.is_back { -sin } else { *sin };
            (y[a], y[b]) = (y[a] * cos - y[b] * sin, y[a] * sin + y[b] * cos);
        }
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, n_tokens, d) = layout.shape().dims3()?;
        let mut y = floats(storage, layout)?.to_vec();
        let n_pairs = self.turns.turns.len() / self.turns.n_tokens.max(1);
        y.par_chunks_mut(n_tokens * d).for_each(|head| {
            for (y, turns) in head.chunks_mut(d).zip(self.turns.turns.chunks(n_pairs)) {
                self.head(y, turns);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { turns: Arc::clone(&self.turns), is_back: !self.is_back };
        Ok(Some(gradient.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::fused::check::derivative;
    use crate::fused::to_vec;

    const SHAPE: (usize, usize, usize) = (2, 3, 8);

    fn heads() -> Var {
        let values: Vec<f32> = (0..48).map(|i| (1.7 * i as f32).sin()).collect();
        Var::from_vec(values, SHAPE, &Device::Cpu).unwrap()
    }

    fn turned(rotary: &Rotary, x: &Tensor) -> Tensor {
        Rotations(vec![Arc::new(rotary.turns(SHAPE.1))]).apply(0, x).unwrap()
    }

    #[test]
    fn derivatives_are_those_of_the_rotation() {
        for pairing in [Pairing::Neighbours, Pairing::Halves] {
            for n_rotated in [8, 4] {
                let rotary = Rotary::new(pairing, n_rotated, 100.0, 0.5, 1.2);
                let x = heads();
                derivative(&[&x], || turned(&rotary, &x));
            }
        }
    }

    #[test]
    fn pairs_turn_by_their_positions_and_the_rest_stays() {
        let x = heads();
        let values = to_vec(&x).unwrap();
        for (pairing, [a, b]) in [(Pairing::Neighbours, [2, 3]), (Pairing::Halves, [1, 3])] {
            let mut rotary = Rotary::new(pairing, 4, 100.0, 0.5, 1.0);
            rotary.divide(&[1.0, 2.0]);
            let found = to_vec(&turned(&rotary, &x)).unwrap();
            // Second pair of the second head's third token: 2 positions of 0.5 * 100^(-1/2) / 2.
            let (at, angle) = ((3 + 2) * 8, 2.0 * 0.5 * 0.1 / 2.0_f32);
            let expected = values[at + a] * angle.cos() - values[at + b] * angle.sin();
            assert!((found[at + a] - expected).abs() < 1e-6);
            assert_eq!(found[at + 4..at + 8], values[at + 4..at + 8]);
            assert_eq!(found[..8], values[..8]);
        }
    }
}
