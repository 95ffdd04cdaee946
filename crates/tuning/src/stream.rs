//! Contexts on their way through the layers of a model, watched by the FFN inputs.

use std::collections::BTreeMap;

use calibration::{
    CalibratedInput, FfnInput, GrowingInput, InputKind, MomentScratch, PassageKind, Sampling,
};
use candle_core::Tensor;
use codec::MatMul;

use crate::TuningError;
use crate::layer::linear;
use crate::llama::{FfnWeights, Llama};

/// Which inputs are kept of what streams through.
#[derive(Clone)]
pub struct Watch<'a> {
    /// Longest input whose second moment is formed.
    pub max_moment_dim: usize,
    /// Which inputs are kept one by one.
    pub sampling: Sampling,
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
}

/// The hidden states of all contexts before the same layer.
pub struct Stream {
    model: Llama,
    states: Vec<(PassageKind, Tensor)>,
    layer: usize,
}

impl Stream {
    /// Contexts before the first layer.
    ///
    /// # Errors
    /// [`TuningError::Compute`], for tokens that the vocabulary does not have.
    pub fn new<'t>(
        model: Llama,
        contexts: impl IntoIterator<Item = (PassageKind, &'t [u32])>,
    ) -> Result<Self, TuningError> {
        let embedded = contexts.into_iter().map(|(kind, tokens)| Ok((kind, model.embed(tokens)?)));
        let states = embedded.collect::<Result<_, TuningError>>()?;
        Ok(Self { model, states, layer: 0 })
    }

    /// The layer that comes next.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Takes all contexts through the next layer with these matrices. `stop` is asked after each context.
    ///
    /// # Errors
    /// [`TuningError::Compute`] or [`TuningError::Stopped`].
    pub fn advance(
        &mut self,
        ffn: &FfnWeights,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TuningError> {
        let layer = &self.model.layers[self.layer];
        for (_, state) in &mut self.states {
            let rotation = self.model.rotation(state.dim(0)?)?;
            *state = layer.forward(state, ffn, &rotation, &self.model.config)?.detach();
            stop_if(stop)?;
        }
        self.layer += 1;
        Ok(())
    }

    /// What the FFN matrices of the next layers see, which are `ffn`. The contexts stay where they are.
    ///
    /// # Errors
    /// [`TuningError::Compute`] or [`TuningError::Stopped`].
    pub fn watch(
        &self,
        ffn: &[FfnWeights],
        watch: &Watch<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<BTreeMap<FfnInput, CalibratedInput>, TuningError> {
        let mut inputs: BTreeMap<FfnInput, GrowingInput> = BTreeMap::new();
        let mut scratch = MomentScratch::default();
        let mut n_before = [0; 2];
        for (kind, state) in &self.states {
            let rotation = self.model.rotation(state.dim(0)?)?;
            let mut x = state.clone();
            for (n, ffn) in ffn.iter().enumerate() {
                let layer = &self.model.layers[self.layer + n];
                x = layer.attend(&x, &rotation, &self.model.config)?;
                let gate_up = layer.ffn_input(&x, &self.model.config)?;
                let down = ffn.down_input(&gate_up)?;
                x = (x + linear(&down, &ffn.down)?)?.detach();
                for (input, seen) in [(InputKind::GateUp, gate_up), (InputKind::Down, down)] {
                    let input = FfnInput { layer: self.layer + n, kind: input };
                    let growing = inputs
                        .entry(input)
                        .or_insert_with(|| GrowingInput::new(seen.dims()[1], watch.max_moment_dim));
                    let rows = seen.flatten_all()?.to_vec1::<f32>()?;
                    let at = (*kind, n_before[*kind as usize]);
                    growing.add(at, &rows, &watch.sampling, watch.mul_mat, &mut scratch);
                }
            }
            n_before[*kind as usize] += state.dim(0)? as u64;
            stop_if(stop)?;
        }
        Ok(inputs.into_iter().map(|(input, growing)| (input, growing.finish())).collect())
    }
}

fn stop_if(stop: &dyn Fn() -> bool) -> Result<(), TuningError> {
    if stop() { Err(TuningError::Stopped) } else { Ok(()) }
}
