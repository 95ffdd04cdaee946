//! What an error in an FFN's output costs, token by token.
//!
//! To second order, an error e in the output of a matrix makes the next-token distributions of the text diverge from
//! what they were by e^T F e / 2, where F is the Fisher information with respect to that output. Per token, what is kept
//! of F is its trace. Source: GuidedQuant (Kim et al., 2025) weighs a layer's inputs by squared gradients of the loss;
//! here the gradients are those of random directions of the model's own distribution, for which no labels are needed.

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{TuningError, stop_if};
use crate::fused::SwiGlu;
use crate::layer::{FfnWeights, Layer, Rotation, gradient_at, linear, rms_norm};
use crate::llama::Llama;
use crate::loss::TOKENS;

/// Squared gradients at the outputs of one layer's FFN matrices, one value per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenCosts {
    /// At those of gate and up together.
    pub(crate) gate_up: Vec<f32>,
    /// At that of down.
    pub(crate) down: Vec<f32>,
}

/// Gives the FFN matrices of a layer.
pub type ReadFfn<'a> = dyn Fn(usize) -> Result<FfnWeights, TuningError> + 'a;

/// Contexts on their way back through the layers.
pub(crate) struct Backward<'a> {
    model: &'a Llama,
    read: &'a ReadFfn<'a>,
    /// Hears of every context in every layer, on the way there and back; says whether to stop.
    heard: &'a mut dyn FnMut() -> bool,
}

impl<'a> Backward<'a> {
    pub(crate) fn new(
        model: &'a Llama,
        read: &'a ReadFfn<'a>,
        heard: &'a mut dyn FnMut() -> bool,
    ) -> Self {
        Self { model, read, heard }
    }

    /// The costs by context and layer. `embedded`: the hidden states of contexts before the first layer,
    /// (tokens, n_embd), which are numbers `first` and following of all.
    ///
    /// # Errors
    /// [`TuningError::Compute`], [`TuningError::Stopped`] or those of reading.
    pub(crate) fn costs(
        &mut self,
        embedded: &[&Tensor],
        first: usize,
    ) -> Result<Vec<Vec<TokenCosts>>, TuningError> {
        let model = self.model;
        let tokens = embedded.iter().map(|x| x.dim(0));
        let rotations = tokens.map(|n| model.rotation(n?)).collect::<Result<Vec<_>, _>>()?;
        let mut states: Vec<Tensor> = embedded.iter().map(|x| (*x).clone()).collect();
        let mut inputs = Vec::with_capacity(model.n_layers());
        for (n, layer) in model.layers.iter().enumerate() {
            let ffn = (self.read)(n)?;
            inputs.push(states.clone());
            for (x, rotation) in states.iter_mut().zip(&rotations) {
                *x = layer.forward(x, &ffn, rotation, &model.config)?;
                stop_if(&mut *self.heard)?;
            }
        }
        let at_end = states.iter().enumerate().map(|(i, x)| model.gradient((first + i) as u64, x));
        let mut gradients = at_end.collect::<Result<Vec<_>, _>>()?;
        let mut costs = vec![vec![TokenCosts::default(); model.n_layers()]; embedded.len()];
        for (n, layer) in model.layers.iter().enumerate().rev() {
            let ffn = (self.read)(n)?;
            for (i, gradient) in gradients.iter_mut().enumerate() {
                (costs[i][n], *gradient) =
                    layer.backward(&inputs[n][i], gradient, &ffn, (&rotations[i], model))?;
                stop_if(&mut *self.heard)?;
            }
        }
        Ok(costs)
    }
}

impl Llama {
    /// The gradient of context number `context` in a random direction of its next-token distributions, with respect to
    /// the state after the last layer, (tokens, n_embd).
    fn gradient(&self, context: u64, state: &Tensor) -> Result<Tensor, TuningError> {
        let state = Var::from_tensor(state)?;
        let normed = rms_norm(&state, &self.output_norm, self.config.rms_eps)?;
        let mut directions = Vec::new();
        let n = state.dim(0)?;
        for start in (0..n).step_by(TOKENS) {
            let some = normed.detach().narrow(0, start, TOKENS.min(n - start))?;
            let logits = linear(&some, &self.output)?;
            let mut rows: Vec<f32> = logits.flatten_all()?.to_vec1()?;
            let width = logits.dim(1)?;
            rows.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
                let mut rng = ChaCha8Rng::seed_from_u64(context);
                rng.set_stream((start + i) as u64);
                to_direction(row, &mut rng);
            });
            let rows = Tensor::from_vec(rows, logits.shape(), &Device::Cpu)?;
            directions.push(rows.matmul(&self.output)?);
        }
        Ok(gradient_at(&state, normed, &Tensor::cat(&directions, 0)?)?)
    }
}

impl Layer {
    /// The costs in this layer and the gradient at its `input`, where `gradient` is that at its output.
    fn backward(
        &self,
        input: &Tensor,
        gradient: &Tensor,
        ffn: &FfnWeights,
        (rotation, model): (&Rotation, &Llama),
    ) -> Result<(TokenCosts, Tensor), TuningError> {
        // A graph for each stretch between two products: candle would form gradients of the matrices as well.
        let input = Var::from_tensor(input)?;
        let attended = self.attend(&input, rotation, &model.config)?;
        let middle = Var::from_tensor(&attended)?;
        let normed = self.ffn_input(&middle, &model.config)?;
        let output = |w: &Tensor| Var::from_tensor(&linear(&normed.detach(), w)?);
        let (gate, up) = (output(&ffn.gate)?, output(&ffn.up)?);
        let product = gate.apply_op2(&up, SwiGlu)?;
        let mut gradients = (product * gradient.matmul(&ffn.down)?)?.sum_all()?.backward()?;
        let mut at = |var: &Var| gradients.remove(var).expect("it is a variable");
        let (at_gate, at_up) = (at(&gate), at(&up));
        let costs = TokenCosts {
            gate_up: squares(&Tensor::cat(&[&at_gate, &at_up], 1)?)?,
            down: squares(gradient)?,
        };
        let at_normed = (at_gate.matmul(&ffn.gate)? + at_up.matmul(&ffn.up)?)?;
        let at_middle = (gradient_at(&middle, normed, &at_normed)? + gradient)?;
        Ok((costs, gradient_at(&input, attended, &at_middle)?))
    }
}

/// Takes the logits of a distribution p to sqrt(p) s - p (sqrt(p) . s) for random signs s, whose mean square is the
/// Fisher information of the logits, diag(p) - p p^T.
fn to_direction(row: &mut [f32], rng: &mut ChaCha8Rng) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|v| *v = (*v - largest).exp());
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    let mut dot = 0.0;
    for chunk in row.chunks_mut(64) {
        let signs: u64 = rng.random();
        for (i, v) in chunk.iter_mut().enumerate() {
            let root = (*v / sum as f32).sqrt();
            *v = if signs >> i & 1 == 1 { root } else { -root };
            dot += f64::from(*v);
        }
    }
    row.iter_mut().for_each(|v| *v -= *v * *v * dot as f32);
}

/// Sum of squares of each row.
fn squares(rows: &Tensor) -> Result<Vec<f32>, TuningError> {
    Ok(rows.sqr()?.sum(1)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use fixtures::models::Model;
    use ggml::gguf::GgufFile;
    use tempfile::TempDir;

    use super::*;

    const CONTEXT: u64 = 3;

    /// A model in `folder` and all its FFN matrices.
    fn model(folder: &TempDir) -> (Llama, Vec<FfnWeights>) {
        let path = folder.path().join("model.gguf");
        Model::default().write(&path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let model = Llama::load(&file).unwrap();
        let ffn = (0..model.n_layers()).map(|n| Llama::ffn(&file, n).unwrap()).collect();
        (model, ffn)
    }

    fn costs(model: &Llama, ffn: &[FfnWeights], tokens: &[u32]) -> Vec<TokenCosts> {
        let (read, embedded) = (|n: usize| Ok(ffn[n].clone()), model.embed(tokens).unwrap());
        let mut go_on = || false;
        let mut backward = Backward::new(model, &read, &mut go_on);
        backward.costs(&[&embedded], CONTEXT as usize).unwrap().remove(0)
    }

    /// What the squared gradients are those of, where `state` comes out of layer `n`, in one graph.
    fn loss(model: &Llama, ffn: &[FfnWeights], n: usize, state: &Tensor) -> Tensor {
        let x = through(model, ffn, n + 1..ffn.len(), state.clone());
        let at_end = model.gradient(CONTEXT, &x.detach()).unwrap();
        (x * at_end).unwrap().sum_all().unwrap()
    }

    /// What comes out of `layers` where `state` goes in.
    fn through(model: &Llama, ffn: &[FfnWeights], layers: Range<usize>, state: Tensor) -> Tensor {
        let rotation = model.rotation(state.dim(0).unwrap()).unwrap();
        layers.fold(state, |x, n| {
            model.layers[n].forward(&x, &ffn[n], &rotation, &model.config).unwrap()
        })
    }

    fn near(found: f32, expected: f32) {
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    }

    #[test]
    fn costs_of_down_are_the_squared_gradients_behind_the_layer() {
        let folder = TempDir::new().unwrap();
        let (model, ffn) = model(&folder);
        let tokens = [7, 31, 5, 120, 66, 9];
        let found = costs(&model, &ffn, &tokens);
        for (n, found) in found.iter().enumerate() {
            let state = through(&model, &ffn, 0..n + 1, model.embed(&tokens).unwrap());
            let state = Var::from_tensor(&state).unwrap();
            let gradients = loss(&model, &ffn, n, &state).backward().unwrap();
            let expected = squares(gradients.get(&state).unwrap()).unwrap();
            found.down.iter().zip(&expected).for_each(|(f, e)| near(*f, *e));
            assert_eq!((found.down.len(), found.gate_up.len()), (6, 6));
        }
    }

    /// Of one token the gradient of a matrix is that of its output times its input.
    #[test]
    fn costs_of_gate_and_up_are_the_squared_gradients_at_their_outputs() {
        let folder = TempDir::new().unwrap();
        let (model, mut ffn) = model(&folder);
        let tokens = [42];
        let found = costs(&model, &ffn, &tokens);
        for (n, found) in found.iter().enumerate() {
            let known = ffn[n].clone();
            let [gate, up] = [&known.gate, &known.up].map(|w| Var::from_tensor(w).unwrap());
            let matrices = FfnWeights {
                gate: gate.as_tensor().clone(),
                up: up.as_tensor().clone(),
                down: known.down.clone(),
            };
            ffn[n] = matrices;
            let before = through(&model, &ffn, 0..n, model.embed(&tokens).unwrap());
            let state = through(&model, &ffn, n..n + 1, before.clone());
            let gradients = loss(&model, &ffn, n, &state).backward().unwrap();
            ffn[n] = known;
            let square =
                |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let rotation = model.rotation(1).unwrap();
            let attended = model.layers[n].attend(&before, &rotation, &model.config).unwrap();
            let input = square(&model.layers[n].ffn_input(&attended, &model.config).unwrap());
            let both = [&gate, &up].map(|var| square(gradients.get(var).unwrap()));
            near(found.gate_up[0] * input, both[0] + both[1]);
        }
    }

    #[test]
    fn directions_have_the_fisher_information_as_their_mean_square() {
        const N: usize = 70;
        let logits: Vec<f32> = (0..N).map(|i| (i as f32 * 1.3).sin() * 2.0).collect();
        let exp: Vec<f64> = logits.iter().map(|v| f64::from(*v).exp()).collect();
        let sum: f64 = exp.iter().sum();
        let p: Vec<f64> = exp.iter().map(|e| e / sum).collect();
        let mut mean = vec![0.0; N * N];
        let n = 20_000;
        for seed in 0..n {
            let mut v = logits.clone();
            to_direction(&mut v, &mut ChaCha8Rng::seed_from_u64(seed));
            for (i, a) in v.iter().enumerate() {
                for (j, b) in v.iter().enumerate() {
                    mean[i * N + j] += f64::from(a * b) / n as f64;
                }
            }
        }
        for i in 0..N {
            for j in 0..N {
                let expected = if i == j { p[i] } else { 0.0 } - p[i] * p[j];
                let noise = 6.0 * (p[i] * p[j] / n as f64).sqrt();
                assert!((mean[i * N + j] - expected).abs() < noise, "{i} {j}");
            }
        }
    }
}
