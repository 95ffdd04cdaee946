//! What an error in an FFN's output costs, token by token.
//!
//! To second order, an error e in the output of a matrix makes the next-token distributions of the text diverge from
//! what they were by e^T F e / 2, where F is the Fisher information with respect to that output. Per token, what is kept
//! of F is its trace. Source: GuidedQuant (Kim et al., 2025) weighs a layer's inputs by squared gradients of the loss;
//! here the gradients are those of random directions of the model's own distribution, for which no labels are needed.

use candle_core::{Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::{TuningError, stop_if};
use crate::layer::{FfnWeights, Layer, gradient_at};
use crate::loss::TOKENS;
use crate::output::Output;
use crate::rotary::Rotations;
use crate::transformer::Transformer;

/// Squared gradients at the outputs of one layer's FFN matrices, one value per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenCosts {
    /// At those of gate and up together.
    pub(crate) gate_up: Vec<f32>,
    /// At that of down.
    pub(crate) down: Vec<f32>,
}

/// Contexts on their way back through the layers.
pub(crate) struct Backward<'a> {
    model: &'a Transformer<'a>,
    /// Hears of every context in every layer, on the way there and back; says whether to stop.
    heard: &'a mut dyn FnMut() -> bool,
}

impl<'a> Backward<'a> {
    pub(crate) fn new(model: &'a Transformer<'a>, heard: &'a mut dyn FnMut() -> bool) -> Self {
        Self { model, heard }
    }

    /// The costs by context and layer. `embedded`: the hidden states of contexts before the first layer,
    /// (tokens, n_embd), which are numbers `first` and following of all.
    ///
    /// # Errors
    /// [`TuningError::Compute`], [`TuningError::Stopped`] or [`TuningError::Gguf`].
    pub(crate) fn costs(
        &mut self,
        embedded: Vec<Tensor>,
        first: usize,
    ) -> Result<Vec<Vec<TokenCosts>>, TuningError> {
        let model = self.model;
        let rotations = model.rotations(&embedded)?;
        let mut costs = vec![vec![TokenCosts::default(); model.n_layers()]; embedded.len()];
        let mut inputs = vec![Vec::new(); model.n_layers()];
        let mut keep = |n: usize, x: &Tensor| {
            inputs[n].push(x.clone());
            stop_if(&mut *self.heard)
        };
        let all = 0..model.n_layers();
        let states = model.run(all.clone(), embedded, &|n| model.ffn(n), &mut keep)?;
        let output = model.output()?;
        let at_end = states.iter().enumerate();
        let at_end = at_end.map(|(i, x)| model.gradient((first + i) as u64, x, &output));
        let mut gradients = at_end.collect::<Result<Vec<_>, _>>()?;
        for n in all.rev() {
            let (layer, ffn) = (model.layer(n)?, model.ffn(n)?);
            for (i, gradient) in gradients.iter_mut().enumerate() {
                (costs[i][n], *gradient) =
                    layer.backward(&inputs[n][i], gradient, &ffn, (&rotations[i], model))?;
                stop_if(&mut *self.heard)?;
            }
        }
        Ok(costs)
    }
}

impl Transformer<'_> {
    /// The gradient of context number `context` in a random direction of its next-token distributions, with respect to
    /// the state after the last layer, (tokens, n_embd).
    fn gradient(
        &self,
        context: u64,
        state: &Tensor,
        output: &Output<'_>,
    ) -> Result<Tensor, TuningError> {
        let state = Var::from_tensor(state)?;
        let normed = self.at_end(&state)?;
        let mut directions = Vec::new();
        let (n, width) = (state.dim(0)?, output.n_vocab());
        for start in (0..n).step_by(TOKENS) {
            let some = normed.detach().narrow(0, start, TOKENS.min(n - start))?;
            let [mut rows] = output.logits([&some])?;
            rows.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
                let mut rng = ChaCha8Rng::seed_from_u64(context);
                rng.set_stream((start + i) as u64);
                let slopes: Vec<f32> = row.iter().map(|logit| output.slope(*logit)).collect();
                to_direction(row, &mut rng);
                row.iter_mut().zip(slopes).for_each(|(v, slope)| *v *= slope);
            });
            directions.push(output.back(&rows)?);
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
        (rotations, model): (&Rotations, &Transformer<'_>),
    ) -> Result<(TokenCosts, Tensor), TuningError> {
        let config = &model.config;
        // A graph for each stretch between two products, at whose ends the gradients are wanted.
        let input = Var::from_tensor(input)?;
        let attended = self.attend(&input, rotations, config)?;
        let middle = Var::from_tensor(&attended)?;
        let normed = self.ffn_input(&middle, config)?;
        let outputs =
            ffn.first().into_iter().map(|w| Var::from_tensor(&w.forward(&normed.detach())?));
        let outputs: Vec<Var> = outputs.collect::<Result<_, candle_core::Error>>()?;
        let tensors: Vec<Tensor> = outputs.iter().map(|var| var.as_tensor().clone()).collect();
        let down_input = ffn.gated(&tensors)?;
        let down_output = Var::from_tensor(&ffn.down.forward(&down_input.detach())?)?;
        let behind = self.behind_down(&down_output, config)?;
        let at_down = gradient_at(&down_output, behind, gradient)?;
        let at_down_input = at_down.matmul(&ffn.down.weight)?;
        let mut gradients = (down_input * at_down_input)?.sum_all()?.backward()?;
        let at_outputs: Vec<Tensor> =
            outputs.iter().map(|var| gradients.remove(var).expect("it is a variable")).collect();
        let costs = TokenCosts {
            gate_up: squares(&Tensor::cat(&at_outputs, 1)?)?,
            down: squares(&at_down)?,
        };
        let mut at_normed = normed.zeros_like()?;
        for (w, at) in ffn.first().iter().zip(&at_outputs) {
            at_normed = (at_normed + at.matmul(&w.weight)?)?;
        }
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
    use format::Role;
    use ggml::gguf::GgufFile;
    use tempfile::TempDir;

    use super::*;

    const CONTEXT: u64 = 3;

    fn file(folder: &TempDir) -> GgufFile {
        let path = folder.path().join("model.gguf");
        Model::default().write(&path).unwrap();
        GgufFile::open(&path).unwrap()
    }

    fn all_ffn(model: &Transformer<'_>) -> Vec<FfnWeights> {
        (0..model.n_layers()).map(|n| model.ffn(n).unwrap()).collect()
    }

    fn costs(model: &Transformer<'_>, tokens: &[u32]) -> Vec<TokenCosts> {
        let embedded = vec![model.embed(tokens).unwrap()];
        let mut go_on = || false;
        let mut backward = Backward::new(model, &mut go_on);
        backward.costs(embedded, CONTEXT as usize).unwrap().remove(0)
    }

    /// What the squared gradients are those of, where `state` comes out of layer `n`, in one graph.
    fn loss(model: &Transformer<'_>, ffn: &[FfnWeights], n: usize, state: &Tensor) -> Tensor {
        let x = through(model, ffn, n + 1..ffn.len(), state.clone());
        let at_end = model.gradient(CONTEXT, &x.detach(), &model.output().unwrap()).unwrap();
        (x * at_end).unwrap().sum_all().unwrap()
    }

    /// What comes out of `layers` where `state` goes in.
    fn through(
        model: &Transformer<'_>,
        ffn: &[FfnWeights],
        layers: Range<usize>,
        state: Tensor,
    ) -> Tensor {
        let rotations = model.rotations(std::slice::from_ref(&state)).unwrap();
        layers.fold(state, |x, n| {
            let layer = model.layer(n).unwrap();
            layer.forward(&x, &ffn[n], &rotations[0], &model.config).unwrap()
        })
    }

    fn near(found: f32, expected: f32) {
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    }

    #[test]
    fn costs_of_down_are_the_squared_gradients_behind_the_layer() {
        let folder = TempDir::new().unwrap();
        let file = file(&folder);
        let model = Transformer::open(&file).unwrap();
        let (ffn, tokens) = (all_ffn(&model), [7, 31, 5, 120, 66, 9]);
        let found = costs(&model, &tokens);
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
        let file = file(&folder);
        let model = Transformer::open(&file).unwrap();
        let (mut ffn, tokens) = (all_ffn(&model), [42]);
        let found = costs(&model, &tokens);
        for (n, found) in found.iter().enumerate() {
            let known = ffn[n].clone();
            let variables = [Role::Gate, Role::Up]
                .map(|role| (role, Var::from_tensor(known.weight(role).unwrap()).unwrap()));
            let variable = |id: format::MatrixId| {
                let of_role = variables.iter().find(|(role, _)| *role == id.role);
                Ok(of_role.map(|(_, var)| var.as_tensor().clone()))
            };
            ffn[n] = model.ffn_with(n, &variable).unwrap();
            let before = through(&model, &ffn, 0..n, model.embed(&tokens).unwrap());
            let state = through(&model, &ffn, n..n + 1, before.clone());
            let gradients = loss(&model, &ffn, n, &state).backward().unwrap();
            ffn[n] = known;
            let square =
                |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let rotations = model.rotations(std::slice::from_ref(&before)).unwrap();
            let layer = model.layer(n).unwrap();
            let attended = layer.attend(&before, &rotations[0], &model.config).unwrap();
            let input = square(&layer.ffn_input(&attended, &model.config).unwrap());
            let both = variables.map(|(_, var)| square(gradients.get(&var).unwrap()));
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
