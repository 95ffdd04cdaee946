//! Tuning the FFNs of a coded model one by one.
//!
//! Atoms, row scales and exact weights of a layer's matrices move together so that what the FFN gives comes nearest to
//! what brings the hidden state back to where it was in the source model. No gradient leaves the layer, so the layer's
//! attention is llama.cpp's and the architecture does not matter. Source: Tseng et al., "QuIP#", 2024, and Egiazarian et
//! al., "AQLM", 2024, tune blocks against the outputs of the source's; here the inputs are those of the coded model.

use std::collections::BTreeMap;

use candle_core::Tensor;
use format::{MatrixId, ModelMap, Role};
use ggml::gguf::GgufFile;
use llama::Model;
use rayon::prelude::*;
use sections::SectionsParts;

use crate::TuningError;
use crate::error::stop_if;
use crate::ffn_form::form_of;
use crate::ffn_text::FfnContext;
use crate::layer::{FfnForm, FfnWeights, Linear, constant};
use crate::parameters::Parameters;
use crate::parts;
use crate::stream::{Decoded, Stream};
use crate::transformer::read;
use crate::tuner::{TuneParams, cosine};

/// Squared errors of what an FFN gives on held-out text, as shares of the squares of what is wanted; a token counts by one
/// over the mean square of its hidden state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FfnErrors {
    /// Before the first step.
    pub before: f64,
    /// After the last one; where it is not smaller, the codes are left as they were.
    pub after: f64,
}

/// What happens while FFNs are tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FfnEvent {
    /// A step is done.
    Step,
    /// A layer is done.
    Layer(usize, FfnErrors),
}

/// The coded FFNs of a model.
pub struct FfnTuner<'a> {
    file: &'a GgufFile,
    form: FfnForm,
    /// The steps are those in each layer.
    params: TuneParams,
}

impl<'a> FfnTuner<'a> {
    /// Looks at what the FFNs of `model` compute, whose file is `file` and whose matrices are those of `map`. One layer is
    /// computed.
    ///
    /// # Errors
    /// [`TuningError::Form`] for what is not known here, or [`TuningError::Llama`].
    pub fn new(
        model: (&Model, &'a GgufFile, &ModelMap),
        params: TuneParams,
    ) -> Result<Self, TuningError> {
        Ok(Self { file: model.1, form: form_of(model)?, params })
    }

    /// Layers of `coded` that are tuned: those whose FFN is there as a whole.
    pub fn layers(&self, coded: impl Iterator<Item = MatrixId>) -> Vec<usize> {
        let has = |layer, role| self.file.tensor(&MatrixId { layer, role }.weight()).is_some();
        let mut layers: Vec<usize> = coded.map(|id| id.layer).collect();
        layers.dedup();
        layers.retain(|layer| has(*layer, Role::Up) && has(*layer, Role::Down));
        layers
    }

    /// Tunes `coded`, one layer after the other, on the contexts of `stream`, which is before the first one. `stop` is
    /// asked between contexts and steps.
    ///
    /// # Errors
    /// [`TuningError`].
    pub fn run(
        &self,
        stream: &mut Stream<'_>,
        coded: BTreeMap<MatrixId, SectionsParts>,
        told: &mut dyn FnMut(FfnEvent),
        stop: &dyn Fn() -> bool,
    ) -> Result<BTreeMap<MatrixId, SectionsParts>, TuningError> {
        let tuned = self.layers(coded.keys().copied());
        let last = coded.keys().map(|id| id.layer).max().unwrap_or(0);
        let (mut left, mut done) = (coded, BTreeMap::new());
        while !left.is_empty() {
            let layer = stream.layer();
            let later = left.split_off(&MatrixId { layer: layer + 1, role: Role::ALL[0] });
            let mut own = std::mem::replace(&mut left, later);
            if tuned.contains(&layer) {
                let (parts, errors) = self.layer(stream, own, told, stop)?;
                told(FfnEvent::Layer(layer, errors));
                own = parts;
            }
            if layer < last {
                stream.advance(&decoded(&own), stop)?;
            }
            done.extend(own);
        }
        Ok(done)
    }

    /// Tunes the matrices of the next layer.
    fn layer(
        &self,
        stream: &mut Stream<'_>,
        coded: BTreeMap<MatrixId, SectionsParts>,
        told: &mut dyn FnMut(FfnEvent),
        stop: &dyn Fn() -> bool,
    ) -> Result<(BTreeMap<MatrixId, SectionsParts>, FfnErrors), TuningError> {
        let layer = stream.layer();
        let ends = [Role::Up, Role::Down].map(|role| MatrixId { layer, role });
        let [fitted, held_out] = stream.ffn_text(ends, &decoded(&coded), stop)?;
        let d_in = self.file.require_tensor(&ends[0].weight())?.dims()[0];
        let [fitted, held_out] = [samples(fitted, d_in)?, samples(held_out, d_in)?];
        let parameters = coded.clone().into_iter().map(|(id, p)| (id, Parameters::new(p)));
        let mut ffn = Ffn { tuner: self, layer, parameters: parameters.collect() };
        let before = ffn.error(&held_out)?;
        for step in 0..self.params.steps {
            let n = self.params.contexts;
            let chosen = (0..n).map(|i| &fitted[(step * n + i) % fitted.len()]);
            ffn.step(chosen, cosine(self.params.rate, step, self.params.steps))?;
            told(FfnEvent::Step);
            stop_if(stop)?;
        }
        let after = ffn.error(&held_out)?;
        let errors = FfnErrors { before, after };
        if after.is_nan() || after >= before {
            return Ok((coded, errors));
        }
        Ok((ffn.parameters.into_iter().map(|(id, p)| (id, p.into_parts())).collect(), errors))
    }
}

/// The matrices that codes stand for.
fn decoded(coded: &BTreeMap<MatrixId, SectionsParts>) -> Decoded {
    coded.iter().map(|(id, parts)| (*id, parts.decode())).collect()
}

/// One context.
struct Sample {
    /// (tokens, d_in).
    input: Tensor,
    /// (tokens, d_out).
    wanted: Tensor,
    /// What errors are multiplied with, (tokens, 1).
    roots: Tensor,
}

fn samples(contexts: Vec<FfnContext>, d_in: usize) -> Result<Vec<Sample>, TuningError> {
    let sample = |context: FfnContext| {
        let n = context.roots.len();
        let d_out = context.wanted.len() / n;
        Ok(Sample {
            input: constant(context.input, &[n, d_in])?,
            wanted: constant(context.wanted, &[n, d_out])?,
            roots: constant(context.roots, &[n, 1])?,
        })
    };
    contexts.into_iter().map(sample).collect()
}

/// The FFN of one layer on its way to better values.
struct Ffn<'a> {
    tuner: &'a FfnTuner<'a>,
    layer: usize,
    parameters: BTreeMap<MatrixId, Parameters>,
}

impl Ffn<'_> {
    /// The matrices as they are now; those that are coded are variables. Nothing is added behind `ffn_down`, because the
    /// product itself is what is wanted.
    fn weights(&self) -> Result<FfnWeights, TuningError> {
        let (file, layer) = (self.tuner.file, self.layer);
        let read = |name: &str| file.tensor(name).map(|info| read(file, info)).transpose();
        let get = |role: Role| -> Result<Option<Linear>, TuningError> {
            let id = MatrixId { layer, role };
            let weight = match self.parameters.get(&id) {
                Some(parameters) => Some(parameters.weight()?.as_tensor().clone()),
                None => read(&id.weight())?,
            };
            let bias = match role {
                Role::Down => None,
                _ => read(&parts::bias(layer, role.part()))?,
            };
            Ok(weight.map(|weight| Linear { weight, bias }))
        };
        let [gate, up, down] = [get(Role::Gate)?, get(Role::Up)?, get(Role::Down)?];
        let (up, down) = up.zip(down).expect("the layer has both");
        Ok(FfnWeights { gate, up, down, form: self.tuner.form })
    }

    /// The squared error over all of `samples`, as a share of the squares of what is wanted; NaN of none.
    fn error(&self, samples: &[Sample]) -> Result<f64, TuningError> {
        let ffn = self.weights()?.detached();
        let square = |t: &Tensor| -> Result<f64, TuningError> {
            Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?))
        };
        let (mut error, mut size) = (0.0, 0.0);
        for Sample { input, wanted, roots } in samples {
            let found = ffn.down.forward(&ffn.down_input(input)?)?;
            error += square(&(found - wanted)?.broadcast_mul(roots)?)?;
            size += square(&wanted.broadcast_mul(roots)?)?;
        }
        Ok(error / size)
    }

    /// Moves the parameters against the gradient of the squared error of `samples`.
    fn step<'s>(
        &mut self,
        samples: impl Iterator<Item = &'s Sample>,
        rate: f32,
    ) -> Result<(), TuningError> {
        let ffn = self.weights()?;
        let mut sums: BTreeMap<MatrixId, Vec<f32>> = BTreeMap::new();
        for Sample { input, wanted, roots } in samples {
            let found = ffn.down.forward(&ffn.down_input(input)?)?;
            let error = (found - wanted)?.broadcast_mul(roots)?;
            let mut gradients = error.sqr()?.sum_all()?.backward()?;
            for id in self.parameters.keys() {
                let weight = ffn.weight(id.role).expect("a coded matrix is there");
                let gradient = gradients.remove(weight).expect("a coded matrix is a variable");
                let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                match sums.get_mut(id) {
                    Some(sum) => sum.par_iter_mut().zip(&gradient).for_each(|(s, g)| *s += g),
                    None => _ = sums.insert(*id, gradient),
                }
            }
        }
        self.parameters
            .par_iter_mut()
            .for_each(|(id, parameters)| parameters.step(&sums[id], rate));
        Ok(())
    }
}
