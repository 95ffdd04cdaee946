//! Tuning a coded model against the model it was made from.
//!
//! The loss is the divergence of the two models' next-token distributions. Gradients go back through all layers;
//! what moves are atoms, row scales and exact weights, never a code, so the file keeps its size and speed.
//!
//! Every layer is read, or decoded, when its turn comes, and computed again on the way back: in memory are the hidden
//! states before each layer of one step's contexts and a single layer.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use format::{MatrixId, Role};
use ggml::gguf::GgufFile;
use rayon::prelude::*;
use sections::SectionsParts;

use crate::TuningError;
use crate::error::stop_if;
use crate::layer::{FfnWeights, gradient_at};
use crate::loss::divergence;
use crate::parameters::Parameters;
use crate::transformer::Transformer;

/// How to tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneParams {
    /// Steps: of the whole model, or in each layer.
    pub steps: usize,
    /// Contexts per step.
    pub contexts: usize,
    /// Change of a value per step at first, as a share of its size; it falls to 0 with a cosine.
    pub rate: f32,
}

impl Default for TuneParams {
    fn default() -> Self {
        Self { steps: 60, contexts: 2, rate: 1e-3 }
    }
}

/// Divergences in nats per token.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneReport {
    /// On held-out text before the first step.
    pub before: f64,
    /// On held-out text after the last step.
    pub after: f64,
    /// Of every step, on the text that it used.
    pub steps: Vec<f64>,
}

/// Who hears of a run: of every finished step (number, loss), and whether to stop, between layers.
pub trait Listener {
    /// A step is done.
    fn step(&mut self, number: usize, loss: f64);
    /// Whether to stop.
    fn stops(&mut self) -> bool;
}

/// A coded model beside the model it was made from.
pub struct Tuner<'a> {
    model: Transformer<'a>,
    parameters: BTreeMap<MatrixId, Parameters>,
}

impl<'a> Tuner<'a> {
    /// Opens the model in `file`, of which `coded` stands in for some matrices.
    ///
    /// # Errors
    /// [`TuningError`] for models that are not known here.
    pub fn new(
        file: &'a GgufFile,
        coded: BTreeMap<MatrixId, SectionsParts>,
    ) -> Result<Self, TuningError> {
        let model = Transformer::open(file)?;
        let parameters = coded.into_iter().map(|(t, parts)| (t, Parameters::new(parts))).collect();
        Ok(Self { model, parameters })
    }

    /// Tunes on `contexts` and measures on `held_out`.
    ///
    /// # Errors
    /// [`TuningError::Diverged`], [`TuningError::Stopped`], [`TuningError::Compute`] or [`TuningError::Gguf`].
    ///
    /// # Panics
    /// If there are no contexts.
    pub fn run(
        &mut self,
        params: TuneParams,
        contexts: &[Vec<u32>],
        held_out: &[Vec<u32>],
        listener: &mut dyn Listener,
    ) -> Result<TuneReport, TuningError> {
        assert!(!contexts.is_empty(), "there is no text to tune on");
        let measured = self.source_states(held_out, listener)?;
        let before = self.measure_against(&measured, listener)?;
        let mut steps = Vec::with_capacity(params.steps);
        for step in 0..params.steps {
            let chosen: Vec<Vec<u32>> = (0..params.contexts)
                .map(|i| contexts[(step * params.contexts + i) % contexts.len()].clone())
                .collect();
            let rate = cosine(params.rate, step, params.steps);
            let loss = self.step((step + 1, rate), &chosen, listener)?;
            steps.push(loss);
            listener.step(step + 1, loss);
            stop_if(|| listener.stops())?;
        }
        Ok(TuneReport { before, after: self.measure_against(&measured, listener)?, steps })
    }

    /// Mean divergence over the tokens of `contexts`.
    ///
    /// # Errors
    /// [`TuningError::Stopped`], [`TuningError::Compute`] or [`TuningError::Gguf`].
    pub fn measure(
        &self,
        contexts: &[Vec<u32>],
        listener: &mut dyn Listener,
    ) -> Result<f64, TuningError> {
        self.measure_against(&self.source_states(contexts, listener)?, listener)
    }

    /// The tuned codes.
    #[must_use]
    pub fn into_parts(self) -> BTreeMap<MatrixId, SectionsParts> {
        self.parameters.into_iter().map(|(t, p)| (t, p.into_parts())).collect()
    }

    /// Number of the first layer with a coded matrix: before it, both models are one.
    fn first(&self) -> usize {
        self.parameters.keys().map(|id| id.layer).min().unwrap_or(self.model.n_layers())
    }

    /// The layers in which the models differ.
    fn layers(&self) -> std::ops::Range<usize> {
        self.first()..self.model.n_layers()
    }

    /// The source model's states before the first coded layer and behind the last one, of each of `contexts`.
    fn source_states(
        &self,
        contexts: &[Vec<u32>],
        listener: &mut dyn Listener,
    ) -> Result<States, TuningError> {
        let read = |n| self.model.ffn(n);
        let mut heard = |_: usize, _: &Tensor| stop_if(|| listener.stops());
        let embedded =
            contexts.iter().map(|tokens| self.model.embed(tokens)).collect::<Result<_, _>>()?;
        let first = self.model.run(0..self.first(), embedded, &read, &mut heard)?;
        let last = self.model.run(self.layers(), first.clone(), &read, &mut heard)?;
        Ok(States { first, last })
    }

    /// Mean divergence over the tokens of the contexts whose states in the source model are `source`.
    fn measure_against(
        &self,
        source: &States,
        listener: &mut dyn Listener,
    ) -> Result<f64, TuningError> {
        let mut heard = |_: usize, _: &Tensor| stop_if(|| listener.stops());
        let read = |n| self.coded(n);
        let coded = self.model.run(self.layers(), source.first.clone(), &read, &mut heard)?;
        let output = self.model.output()?;
        let (mut sum, mut n) = (0.0, 0);
        for (source, coded) in source.last.iter().zip(&coded) {
            let [source, coded] = [self.model.at_end(source)?, self.model.at_end(coded)?];
            sum += divergence(&source, &coded, &output, false)?.0;
            n += coded.dim(0)?;
        }
        Ok(sum / n.max(1) as f64)
    }

    /// Moves the parameters against the gradient of `contexts`; their mean divergence before.
    fn step(
        &mut self,
        (number, rate): (usize, f32),
        contexts: &[Vec<u32>],
        listener: &mut dyn Listener,
    ) -> Result<f64, TuningError> {
        let source = self.source_states(contexts, listener)?;
        let mut inputs = vec![Vec::with_capacity(contexts.len()); self.model.n_layers()];
        let mut keep = |n: usize, x: &Tensor| {
            inputs[n].push(x.clone());
            stop_if(|| listener.stops())
        };
        let coded = self.model.run(self.layers(), source.first, &|n| self.coded(n), &mut keep)?;
        let (loss, mut gradients) = self.at_end(&source.last, &coded)?;
        if !loss.is_finite() {
            return Err(TuningError::Diverged { step: number });
        }
        for n in self.layers().rev() {
            stop_if(|| listener.stops())?;
            let sums = self.back(n, &inputs[n], &mut gradients)?;
            let layer = self.parameters.range_mut(in_layer(n));
            let moved: Vec<(&mut Parameters, Vec<f32>)> = layer.map(|(_, p)| p).zip(sums).collect();
            moved.into_par_iter().for_each(|(parameters, sum)| parameters.step(&sum, rate));
        }
        Ok(loss)
    }

    /// The mean divergence of contexts with these states behind the last layer, and the gradient of its sum over
    /// tokens at each of `coded`.
    fn at_end(
        &self,
        source: &[Tensor],
        coded: &[Tensor],
    ) -> Result<(f64, Vec<Tensor>), TuningError> {
        let output = self.model.output()?;
        let (mut sum, mut n, mut gradients) = (0.0, 0, Vec::with_capacity(coded.len()));
        for (source, coded) in source.iter().zip(coded) {
            let state = Var::from_tensor(coded)?;
            let (expected, found) = (self.model.at_end(source)?, self.model.at_end(&state)?);
            let (loss, gradient) = divergence(&expected, &found.detach(), &output, true)?;
            let gradient = gradient.expect("it was asked for");
            gradients.push(gradient_at(&state, found, &gradient)?);
            (sum, n) = (sum + loss, n + coded.dim(0)?);
        }
        Ok((sum / n as f64, gradients))
    }

    /// Takes the `gradients` behind layer `n` of contexts with these `inputs` to those before it. What comes back are
    /// the gradients at its coded matrices, [d_in, d_out], in the order of their roles.
    fn back(
        &self,
        n: usize,
        inputs: &[Tensor],
        gradients: &mut [Tensor],
    ) -> Result<Vec<Vec<f32>>, TuningError> {
        let (layer, ffn) = (self.model.layer(n)?, self.coded(n)?);
        let roles: Vec<Role> = self.parameters.range(in_layer(n)).map(|(id, _)| id.role).collect();
        let mut sums: Vec<Vec<f32>> = Vec::new();
        let rotations = self.model.rotations(inputs)?;
        for ((input, gradient), rotations) in inputs.iter().zip(gradients).zip(&rotations) {
            let input = Var::from_tensor(input)?;
            let output = layer.forward(&input, &ffn, rotations, &self.model.config)?;
            let mut found = (output * &*gradient)?.sum_all()?.backward()?;
            *gradient = found.remove(&input).expect("the state is a variable");
            let mut own = Vec::with_capacity(roles.len());
            for role in &roles {
                let weight = ffn.weight(*role).expect("a coded matrix is there");
                let at = found.remove(weight).expect("a coded matrix is a variable");
                own.push(at.flatten_all()?.to_vec1::<f32>()?);
            }
            match sums.is_empty() {
                true => sums = own,
                false => sums.iter_mut().zip(&own).for_each(|(sum, own)| add(sum, own)),
            }
        }
        Ok(sums)
    }

    /// The matrices of layer `n` as they are coded now; those that are, are variables.
    fn coded(&self, n: usize) -> Result<FfnWeights, TuningError> {
        self.model.ffn_with(n, &|id| {
            let variable = self.parameters.get(&id).map(Parameters::weight).transpose()?;
            Ok(variable.map(|variable| variable.as_tensor().clone()))
        })
    }
}

/// The rate of step number `step`, from 0, which falls from `first` to 0.
pub(crate) fn cosine(first: f32, step: usize, steps: usize) -> f32 {
    let progress = step as f32 / steps as f32;
    first * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
}

/// States of the source model, of each context.
struct States {
    first: Vec<Tensor>,
    last: Vec<Tensor>,
}

/// All matrices of a layer.
fn in_layer(layer: usize) -> std::ops::RangeInclusive<MatrixId> {
    let [first, .., last] = Role::ALL;
    MatrixId { layer, role: first }..=MatrixId { layer, role: last }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.par_iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
}
