//! One layer: attention and FFN around the hidden state.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::rotary_emb::rope_i_slow;
use format::Role;

use crate::TuningError;
use crate::attention::Attention;
use crate::config::Config;
use crate::fused::{RmsNorm, SwiGlu};

/// What a layer has besides its FFN matrices. Matrices are (outputs, inputs) in candle's order.
pub(crate) struct Layer {
    pub(crate) attn_norm: Tensor,
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) output: Tensor,
    pub(crate) ffn_norm: Tensor,
}

/// The FFN matrices of one layer, (outputs, inputs) in candle's order.
#[derive(Clone)]
pub struct FfnWeights {
    /// `ffn_gate`.
    pub gate: Tensor,
    /// `ffn_up`.
    pub up: Tensor,
    /// `ffn_down`.
    pub down: Tensor,
}

/// Cosines and sines of all positions, (tokens, head_dim / 2).
pub(crate) struct Rotation {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Layer {
    /// The hidden state after attention; `x`: (tokens, n_embd).
    pub(crate) fn attend(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        config: &Config,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.attn_norm, config.rms_eps)?;
        let rotated = |w: &Tensor, n| {
            let heads = heads(&linear(&normed, w)?, n)?.unsqueeze(0)?;
            rope_i_slow(&heads, &rotation.cos, &rotation.sin)?.squeeze(0)?.contiguous()
        };
        let (q, k) = (rotated(&self.q, config.n_head)?, rotated(&self.k, config.n_head_kv)?);
        let v = heads(&linear(&normed, &self.v)?, config.n_head_kv)?;
        let attended = q.apply_op3(&k, &v, Attention)?.transpose(0, 1)?.flatten_from(1)?;
        x + linear(&attended, &self.output)?
    }

    /// What gate and up see of the state after attention.
    pub(crate) fn ffn_input(&self, x: &Tensor, config: &Config) -> Result<Tensor> {
        rms_norm(x, &self.ffn_norm, config.rms_eps)
    }

    /// The hidden state after the layer.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        ffn: &FfnWeights,
        rotation: &Rotation,
        config: &Config,
    ) -> Result<Tensor> {
        let x = self.attend(x, rotation, config)?;
        let down = ffn.down_input(&self.ffn_input(&x, config)?)?;
        x + linear(&down, &ffn.down)?
    }
}

impl FfnWeights {
    /// Takes `dense`, [d_in, d_out], in place of one matrix.
    ///
    /// # Errors
    /// [`TuningError::Compute`] if it has another size.
    pub fn replace(&mut self, role: Role, dense: Vec<f32>) -> std::result::Result<(), TuningError> {
        let matrix = self.get_mut(role);
        *matrix = Tensor::from_vec(dense, matrix.shape(), &Device::Cpu)?;
        Ok(())
    }

    pub(crate) fn get_mut(&mut self, role: Role) -> &mut Tensor {
        match role {
            Role::Gate => &mut self.gate,
            Role::Up => &mut self.up,
            Role::Down => &mut self.down,
        }
    }

    /// The same matrices, of which no gradients are kept.
    pub(crate) fn detached(&self) -> Self {
        Self { gate: self.gate.detach(), up: self.up.detach(), down: self.down.detach() }
    }

    /// What down sees: silu(gate x) * up x.
    pub(crate) fn down_input(&self, input: &Tensor) -> Result<Tensor> {
        linear(input, &self.gate)?.apply_op2(&linear(input, &self.up)?, SwiGlu)
    }
}

/// x W^T.
pub(crate) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

/// The gradient at `var`, where that at `output`, which was made from it, is `upstream`.
pub(crate) fn gradient_at(var: &Var, output: Tensor, upstream: &Tensor) -> Result<Tensor> {
    let mut gradients = (output * upstream)?.sum_all()?.backward()?;
    Ok(gradients.remove(var).expect("it is a variable"))
}

/// (tokens, heads * d) -> (heads, tokens, d).
fn heads(x: &Tensor, n: usize) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    x.reshape((tokens, n, width / n))?.transpose(0, 1)?.contiguous()
}

/// x / sqrt(mean x^2 + eps) * weight.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps })
}
