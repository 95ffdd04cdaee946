//! A model of a known family, run layer by layer. Weights are read from the mapped file whenever they are needed.

use std::ops::Range;

use candle_core::Tensor;
use format::{MatrixId, Role};
use ggml::gguf::{GgufFile, TensorInfo};

use crate::TuningError;
use crate::check::Outline;
use crate::config::Config;
use crate::layer::{FfnForm, FfnWeights, Layer, Linear, constant, normed};
use crate::output::Output;
use crate::parts::{self, EMBEDDING, OUTPUT, OUTPUT_BIAS, OUTPUT_NORM};
use crate::rotary::Rotations;

/// A model of a known family. In memory is the last norm only.
pub struct Transformer<'a> {
    file: &'a GgufFile,
    pub(crate) config: Config,
    output_norm: Tensor,
}

/// Gives the FFN matrices of a layer.
pub(crate) type ReadFfn<'a> = dyn Fn(usize) -> Result<FfnWeights, TuningError> + 'a;

/// Hears of every context before every layer: the layer's number and the hidden state; an error stops the run.
pub(crate) type Heard<'a> = dyn FnMut(usize, &Tensor) -> Result<(), TuningError> + 'a;

impl<'a> Transformer<'a> {
    /// The model in `file`.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`], [`TuningError::Gguf`] or [`TuningError::Compute`].
    pub fn open(file: &'a GgufFile) -> Result<Self, TuningError> {
        let Outline { config, .. } = Outline::of(file)?;
        let output_norm = read(file, file.require_tensor(OUTPUT_NORM)?)?;
        Ok(Self { file, config, output_norm })
    }

    /// Number of layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.config.n_layer
    }

    /// Logits after each of `tokens`, (tokens, vocabulary).
    ///
    /// # Errors
    /// [`TuningError::Compute`], for tokens that the vocabulary does not have, or [`TuningError::Gguf`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, TuningError> {
        let states = vec![self.embed(tokens)?];
        let all = 0..self.n_layers();
        let states = self.run(all, states, &|n| self.ffn(n), &mut |_, _| Ok(()))?;
        let output = self.output()?;
        let [logits] = output.logits([&self.at_end(&states[0])?])?;
        Ok(logits.chunks(output.n_vocab()).map(<[f32]>::to_vec).collect())
    }

    /// The hidden state before the first layer, (tokens, n_embd).
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor, TuningError> {
        let info = self.file.require_tensor(EMBEDDING)?;
        let mut values = Vec::with_capacity(tokens.len() * self.config.n_embd);
        for token in tokens {
            let row = *token as usize;
            values.extend(self.file.rows_to_f32(info, row..row + 1)?);
        }
        values.iter_mut().for_each(|v| *v *= self.config.embedding_scale);
        Ok(constant(values, &[tokens.len(), self.config.n_embd])?)
    }

    /// What the states of contexts become in `layers`, without gradients.
    pub(crate) fn run(
        &self,
        layers: Range<usize>,
        mut states: Vec<Tensor>,
        ffn: &ReadFfn<'_>,
        heard: &mut Heard<'_>,
    ) -> Result<Vec<Tensor>, TuningError> {
        let rotations = self.rotations(&states)?;
        for n in layers {
            let (layer, ffn) = (self.layer(n)?, ffn(n)?.detached());
            for (x, rotations) in states.iter_mut().zip(&rotations) {
                heard(n, x)?;
                *x = layer.forward(x, &ffn, rotations, &self.config)?;
            }
        }
        Ok(states)
    }

    /// How positions turn in each of the contexts that `states` are of.
    pub(crate) fn rotations(&self, states: &[Tensor]) -> Result<Vec<Rotations>, TuningError> {
        let of = |x: &Tensor| Ok(Rotations::of(&self.config, x.dim(0)?));
        states.iter().map(of).collect()
    }

    /// The state behind the last norm.
    pub(crate) fn at_end(&self, state: &Tensor) -> Result<Tensor, TuningError> {
        Ok(normed(state, Some(&self.output_norm), &self.config)?)
    }

    /// What takes the state behind the last norm to logits.
    pub(crate) fn output(&self) -> Result<Output<'a>, TuningError> {
        let name = if self.file.tensor(OUTPUT).is_some() { OUTPUT } else { EMBEDDING };
        let Config { logit_scale, logit_cap, .. } = self.config;
        let bias = self.file.tensor(OUTPUT_BIAS).map(|bias| self.file.to_f32(bias)).transpose()?;
        let matrix = (self.file, self.file.require_tensor(name)?);
        Ok(Output::new(matrix, bias.unwrap_or_default(), logit_scale, logit_cap))
    }

    /// Everything of a layer but its FFN matrices.
    pub(crate) fn layer(&self, n: usize) -> Result<Layer, TuningError> {
        let norm = |part: &str| self.optional(&parts::weight(n, part));
        let [q, k, v] = self.query_key_value(n)?;
        Ok(Layer {
            view: self.config.views[n],
            attn_norm: norm(parts::ATTN_NORM)?,
            q,
            k,
            v,
            q_norm: norm(parts::Q_NORM)?,
            k_norm: norm(parts::K_NORM)?,
            output: self.product(n, parts::ATTN_OUTPUT)?,
            attn_post_norm: norm(parts::ATTN_POST_NORM)?,
            ffn_norm: norm(parts::FFN_NORM)?,
            ffn_post_norm: norm(parts::FFN_POST_NORM)?,
        })
    }

    fn query_key_value(&self, n: usize) -> Result<[Linear; 3], TuningError> {
        let names = [parts::Q, parts::K, parts::V];
        let Some(fused) = self.optional(&parts::weight(n, parts::QKV))? else {
            let [q, k, v] = names;
            return Ok([self.product(n, q)?, self.product(n, k)?, self.product(n, v)?]);
        };
        let fused_bias = self.optional(&parts::bias(n, parts::QKV))?;
        let Config { n_head, n_head_kv, head_dim, .. } = self.config;
        let mut start = 0;
        let mut part = |name: &str, n_heads: usize| -> Result<Linear, TuningError> {
            let len = n_heads * head_dim;
            let rows = |t: &Tensor| t.narrow(0, start, len);
            let bias = match &fused_bias {
                Some(bias) => Some(rows(bias)?),
                None => self.optional(&parts::bias(n, name))?,
            };
            let weight = rows(&fused)?;
            start += len;
            Ok(Linear { weight, bias })
        };
        let [q, k, v] = names;
        Ok([part(q, n_head)?, part(k, n_head_kv)?, part(v, n_head_kv)?])
    }

    /// The FFN matrices of layer `n` as they stand in the file.
    pub(crate) fn ffn(&self, n: usize) -> Result<FfnWeights, TuningError> {
        self.ffn_with(n, &|_| Ok(None))
    }

    /// The same with what `instead` gives in place of a matrix.
    pub(crate) fn ffn_with(
        &self,
        layer: usize,
        instead: &dyn Fn(MatrixId) -> Result<Option<Tensor>, TuningError>,
    ) -> Result<FfnWeights, TuningError> {
        let get = |role: Role| -> Result<Linear, TuningError> {
            let id = MatrixId { layer, role };
            let weight = match instead(id)? {
                Some(weight) => weight,
                None => read(self.file, self.file.require_tensor(&id.weight())?)?,
            };
            Ok(Linear { weight, bias: self.optional(&parts::bias(layer, role.part()))? })
        };
        let family = self.config.family;
        Ok(FfnWeights {
            gate: (!family.has_gate_in_up).then(|| get(Role::Gate)).transpose()?,
            up: get(Role::Up)?,
            down: get(Role::Down)?,
            form: match family.has_gate_in_up {
                true => FfnForm::GateInUp(family.activation),
                false => FfnForm::Gated(family.activation),
            },
        })
    }

    fn product(&self, n: usize, part: &str) -> Result<Linear, TuningError> {
        let weight = read(self.file, self.file.require_tensor(&parts::weight(n, part))?)?;
        Ok(Linear { weight, bias: self.optional(&parts::bias(n, part))? })
    }

    fn optional(&self, name: &str) -> Result<Option<Tensor>, TuningError> {
        self.file.tensor(name).map(|info| read(self.file, info)).transpose()
    }
}

/// A tensor in F32; ggml's [d_in, d_out] is candle's (d_out, d_in).
pub(crate) fn read(file: &GgufFile, info: &TensorInfo) -> Result<Tensor, TuningError> {
    let values = file.to_f32(info)?;
    file.release(info);
    let dims: Vec<usize> = info.dims().iter().rev().copied().collect();
    Ok(constant(values, &dims)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use fixtures::architectures;

    use super::*;
    use crate::families;
    use crate::layer::gradient_at;

    /// The gradient of a layer's output in one direction, at its input, against central differences along another.
    #[test]
    fn gradients_of_every_family_are_those_of_its_layers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let wave = |shape: &[usize], phase: f32| {
            let n = shape.iter().product();
            constant((0..n).map(|i| (1.7 * i as f32 + phase).sin()).collect(), shape).unwrap()
        };
        for architecture in families() {
            architectures::write(architecture, &path).unwrap();
            let file = GgufFile::open(&path).unwrap();
            let model = Transformer::open(&file).unwrap();
            let (layer, ffn) = (model.layer(1).unwrap(), model.ffn(1).unwrap());
            let shape = [7, model.config.n_embd];
            let (input, upstream, along) =
                (wave(&shape, 0.1), wave(&shape, 0.2), wave(&shape, 0.3));
            let rotations = model.rotations(std::slice::from_ref(&input)).unwrap();
            let forward =
                |x: &Tensor| layer.forward(x, &ffn, &rotations[0], &model.config).unwrap();
            let sum = |x: Tensor| f64::from(x.sum_all().unwrap().to_scalar::<f32>().unwrap());
            let var = Var::from_tensor(&input).unwrap();
            let gradient = gradient_at(&var, forward(&var), &upstream).unwrap();
            let found = sum((gradient * &along).unwrap());
            let moved = |step: f64| {
                sum((forward(&(&input + (&along * step).unwrap()).unwrap()) * &upstream).unwrap())
            };
            let expected = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (found - expected).abs() < 0.01 * expected.abs().max(1.0),
                "{architecture}: {found} {expected}"
            );
        }
    }
}
