//! Tuning a coded model against the model it was made from.
//!
//! The loss is the divergence of the two models' next-token distributions. Gradients go back through all layers;
//! what moves are atoms, row scales and exact weights, never a code, so the file keeps its size and speed.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use format::{MatrixId, Role};
use ggml::gguf::GgufFile;
use rayon::prelude::*;
use sections::SectionsParts;

use crate::TuningError;
use crate::layer::{FfnWeights, gradient_at, rms_norm};
use crate::llama::Llama;
use crate::loss::divergence;
use crate::parameters::Parameters;

/// How to tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneParams {
    /// Steps.
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

/// A coded model beside the model it was made from.
pub struct Tuner {
    model: Llama,
    teacher: Vec<FfnWeights>,
    parameters: BTreeMap<MatrixId, Parameters>,
    /// Variables of the current values.
    student: Vec<FfnWeights>,
    variables: BTreeMap<MatrixId, Var>,
}

impl Tuner {
    /// Loads the model in `file`, of which `coded` stands in for some matrices.
    ///
    /// # Errors
    /// [`TuningError`] for models that are not known here.
    pub fn new(
        file: &GgufFile,
        coded: BTreeMap<MatrixId, SectionsParts>,
    ) -> Result<Self, TuningError> {
        let model = Llama::load(file)?;
        let teacher: Vec<FfnWeights> =
            (0..model.n_layers()).map(|n| Llama::ffn(file, n)).collect::<Result<_, _>>()?;
        let parameters = coded.into_iter().map(|(t, parts)| (t, Parameters::new(parts))).collect();
        let (student, variables) = (teacher.clone(), BTreeMap::new());
        let mut tuner = Self { model, teacher, parameters, student, variables };
        tuner.refresh()?;
        Ok(tuner)
    }

    /// Tunes on `contexts` and measures on `held_out`. `report` hears of every step (number, loss) and says
    /// whether to stop.
    ///
    /// # Errors
    /// [`TuningError::Diverged`], [`TuningError::Stopped`] or [`TuningError::Compute`].
    ///
    /// # Panics
    /// If there are no contexts.
    pub fn run(
        &mut self,
        params: TuneParams,
        contexts: &[Vec<u32>],
        held_out: &[Vec<u32>],
        report: &mut dyn FnMut(usize, f64) -> bool,
    ) -> Result<TuneReport, TuningError> {
        assert!(!contexts.is_empty(), "there is no text to tune on");
        let expected = self.teacher_states(held_out)?;
        let before = self.measure_against(&expected, held_out)?;
        let mut losses = Vec::with_capacity(params.steps);
        for step in 0..params.steps {
            let chosen = (0..params.contexts)
                .map(|i| &contexts[(step * params.contexts + i) % contexts.len()]);
            let (mut sum, mut n) = (0.0, 0);
            for context in chosen {
                sum += self.accumulate(context)?;
                n += context.len();
            }
            let loss = sum / n as f64;
            if !loss.is_finite() {
                return Err(TuningError::Diverged { step: step + 1 });
            }
            losses.push(loss);
            let progress = step as f32 / params.steps as f32;
            let rate = params.rate * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos());
            self.parameters.par_iter_mut().for_each(|(_, p)| p.step(rate));
            self.refresh()?;
            if report(step + 1, loss) {
                return Err(TuningError::Stopped);
            }
        }
        Ok(TuneReport { before, after: self.measure_against(&expected, held_out)?, steps: losses })
    }

    /// Mean divergence over the tokens of `contexts`.
    ///
    /// # Errors
    /// [`TuningError::Compute`].
    pub fn measure(&self, contexts: &[Vec<u32>]) -> Result<f64, TuningError> {
        self.measure_against(&self.teacher_states(contexts)?, contexts)
    }

    /// States of the source model behind its last layer, of each of `contexts`.
    fn teacher_states(&self, contexts: &[Vec<u32>]) -> Result<Vec<Tensor>, TuningError> {
        contexts.iter().map(|tokens| self.model.last_state(tokens, &self.teacher)).collect()
    }

    /// Mean divergence over the tokens of `contexts`, for which the source model's states are `expected`.
    fn measure_against(
        &self,
        expected: &[Tensor],
        contexts: &[Vec<u32>],
    ) -> Result<f64, TuningError> {
        let (mut sum, mut n) = (0.0, 0);
        for (tokens, teacher) in contexts.iter().zip(expected) {
            let student = self.model.last_state(tokens, &self.student)?;
            sum += divergence(teacher, &student, &self.model.output, false)?.0;
            n += tokens.len();
        }
        Ok(sum / n.max(1) as f64)
    }

    /// The tuned codes.
    #[must_use]
    pub fn into_parts(self) -> BTreeMap<MatrixId, SectionsParts> {
        self.parameters.into_iter().map(|(t, p)| (t, p.into_parts())).collect()
    }

    /// Adds the gradients of one context; the sum of its tokens' divergences.
    fn accumulate(&mut self, tokens: &[u32]) -> Result<f64, TuningError> {
        let teacher = self.model.last_state(tokens, &self.teacher)?;
        let rotation = self.model.rotation(tokens.len())?;
        let config = &self.model.config;
        // A graph per layer instead of one for all: each is freed as soon as its gradients are known.
        let mut graphs = Vec::with_capacity(self.model.n_layers());
        let mut x = self.model.embed(tokens)?;
        for (layer, ffn) in self.model.layers.iter().zip(&self.student) {
            let input = Var::from_tensor(&x)?;
            let output = layer.forward(&input, ffn, &rotation, config)?;
            x = output.detach();
            graphs.push((input, output));
        }
        let last = Var::from_tensor(&x)?;
        let normed = rms_norm(&last, &self.model.output_norm, config.rms_eps)?;
        let (loss, gradient) = divergence(&teacher, &normed.detach(), &self.model.output, true)?;
        let gradient = gradient.expect("it was asked for");
        let mut upstream = gradient_at(&last, normed, &gradient)?;
        for (n, (input, output)) in graphs.into_iter().enumerate().rev() {
            let mut gradients = (output * upstream)?.sum_all()?.backward()?;
            upstream = gradients.remove(&input).expect("the state is a variable");
            for role in Role::ALL {
                let tensor = MatrixId { layer: n, role };
                let Some(variable) = self.variables.get(&tensor) else { continue };
                let gradient = gradients.remove(variable).expect("the matrix is a variable");
                let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                let parameters = self.parameters.get_mut(&tensor).expect("it has a variable");
                parameters.add_gradient(&gradient);
            }
        }
        Ok(loss)
    }

    /// Makes the student's matrices those of the current parameters.
    fn refresh(&mut self) -> Result<(), TuningError> {
        for (tensor, parameters) in &self.parameters {
            let variable = parameters.weight()?;
            let ffn = &mut self.student[tensor.layer];
            *ffn.get_mut(tensor.role) = variable.as_tensor().clone();
            self.variables.insert(*tensor, variable);
        }
        Ok(())
    }
}
