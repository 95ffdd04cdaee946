//! A model in memory, run layer by layer.

use candle_core::{Device, Tensor};
use format::{MatrixId, Role};
use ggml::gguf::GgufFile;

use crate::TuningError;
use crate::check::{EMBEDDING, OUTPUT, OUTPUT_NORM, Outline};
use crate::config::Config;
use crate::layer::{FfnWeights, Layer, Rotation, linear, rms_norm};

/// A model of the llama architecture in F32, without its FFN matrices.
pub struct Llama {
    pub(crate) config: Config,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Tensor,
    /// (vocabulary, n_embd).
    pub(crate) output: Tensor,
    embedding: Tensor,
}

impl Llama {
    /// Loads everything but the FFN matrices.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`], [`TuningError::Gguf`] or [`TuningError::Compute`].
    pub fn load(file: &GgufFile) -> Result<Self, TuningError> {
        let Outline { config, .. } = Outline::of(file)?;
        let layer = |n: usize| -> Result<Layer, TuningError> {
            let get = |part: &str| tensor(file, &format!("blk.{n}.{part}.weight"));
            Ok(Layer {
                attn_norm: get("attn_norm")?,
                q: get("attn_q")?,
                k: get("attn_k")?,
                v: get("attn_v")?,
                output: get("attn_output")?,
                ffn_norm: get("ffn_norm")?,
            })
        };
        let layers = (0..config.n_layer).map(layer).collect::<Result<_, _>>()?;
        let embedding = tensor(file, EMBEDDING)?;
        let output = match file.tensor(OUTPUT) {
            Some(_) => tensor(file, OUTPUT)?,
            None => embedding.clone(),
        };
        let output_norm = tensor(file, OUTPUT_NORM)?;
        Ok(Self { config, layers, output_norm, output, embedding })
    }

    /// The FFN matrices of layer `n` as they stand in `file`.
    ///
    /// # Errors
    /// [`TuningError::Gguf`] or [`TuningError::Compute`].
    pub fn ffn(file: &GgufFile, layer: usize) -> Result<FfnWeights, TuningError> {
        let get = |role| tensor(file, &MatrixId { layer, role }.weight());
        Ok(FfnWeights { gate: get(Role::Gate)?, up: get(Role::Up)?, down: get(Role::Down)? })
    }

    /// Number of layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The hidden state before the first layer, (tokens, n_embd).
    ///
    /// # Errors
    /// [`TuningError::Compute`], for tokens that the vocabulary does not have.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor, TuningError> {
        Ok(self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?)
    }

    /// Logits after each of `tokens` with these FFN matrices, (tokens, vocabulary).
    ///
    /// # Errors
    /// [`TuningError::Compute`].
    pub fn logits(&self, tokens: &[u32], ffn: &[FfnWeights]) -> Result<Tensor, TuningError> {
        Ok(linear(&self.last_state(tokens, ffn)?, &self.output)?)
    }

    /// The hidden state after the last norm, (tokens, n_embd), without gradients.
    pub(crate) fn last_state(
        &self,
        tokens: &[u32],
        ffn: &[FfnWeights],
    ) -> Result<Tensor, TuningError> {
        let rotation = self.rotation(tokens.len())?;
        let mut x = self.embed(tokens)?;
        for (layer, ffn) in self.layers.iter().zip(ffn) {
            x = layer.forward(&x, &ffn.detached(), &rotation, &self.config)?;
        }
        Ok(rms_norm(&x, &self.output_norm, self.config.rms_eps)?)
    }

    pub(crate) fn rotation(&self, tokens: usize) -> Result<Rotation, TuningError> {
        let pairs = self.config.frequencies.len();
        let angles =
            (0..tokens).flat_map(|t| self.config.frequencies.iter().map(move |f| t as f32 * f));
        let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((tokens, pairs))?;
        Ok(Rotation { cos: angles.cos()?, sin: angles.sin()? })
    }
}

/// A tensor in F32; ggml's [d_in, d_out] is candle's (d_out, d_in).
fn tensor(file: &GgufFile, name: &str) -> Result<Tensor, TuningError> {
    let info = file.require_tensor(name)?;
    let values = file.to_f32(info)?;
    file.release(info);
    let dims: Vec<usize> = info.dims().iter().rev().copied().collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}
