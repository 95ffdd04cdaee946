//! AdamW with its moments at hand, so that a checkpoint can hold them.
//!
//! Loshchilov, Hutter: Decoupled weight decay regularization, ICLR 2019.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::tiny::model::Parameter;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.98;
const EPS: f32 = 1e-8;
/// Of matrices; norms are not drawn to 0.
const WEIGHT_DECAY: f32 = 0.05;
/// A gradient that is longer is cut to this length.
const MAX_NORM: f32 = 1.0;

/// Moments of every parameter, in the order of the model's list.
pub struct AdamW {
    /// Mean of the gradient.
    pub first: Vec<Vec<f32>>,
    /// Mean of its square.
    pub second: Vec<Vec<f32>>,
    /// Steps taken.
    pub step: u64,
}

impl AdamW {
    /// Before the first step.
    #[must_use]
    pub fn new(parameters: &[Parameter]) -> Self {
        let zeros = || parameters.iter().map(|p| vec![0.0; p.var.elem_count()]).collect();
        Self { first: zeros(), second: zeros(), step: 0 }
    }

    /// One step along `grads`, one for each parameter.
    ///
    /// # Errors
    /// From candle.
    pub fn step(&mut self, parameters: &[Parameter], grads: &[Vec<f32>], rate: f32) -> Result<()> {
        self.step += 1;
        let square: f64 = grads.iter().flatten().map(|g| f64::from(g * g)).sum();
        let shrink = (MAX_NORM / (square.sqrt() as f32).max(1e-12)).min(1.0);
        let power = self.step.min(i32::MAX as u64) as i32;
        let (correct_1, correct_2) = (1.0 - BETA_1.powi(power), 1.0 - BETA_2.powi(power));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, grad), (first, second)) in parameters.iter().zip(grads).zip(moments) {
            let decay = if p.var.rank() > 1 { rate * WEIGHT_DECAY } else { 0.0 };
            let mut values = p.var.flatten_all()?.to_vec1::<f32>()?;
            let state = first.par_iter_mut().zip(second).with_min_len(4096);
            values.par_iter_mut().zip(grad).zip(state).for_each(|((v, g), (m, s))| {
                let g = g * shrink;
                *m = BETA_1 * *m + (1.0 - BETA_1) * g;
                *s = BETA_2 * *s + (1.0 - BETA_2) * g * g;
                let direction = (*m / correct_1) / ((*s / correct_2).sqrt() + EPS);
                *v -= rate * direction + decay * *v;
            });
            p.var.set(&Tensor::from_vec(values, p.var.shape(), p.var.device())?)?;
        }
        Ok(())
    }
}
