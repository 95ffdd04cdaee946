//! One layer: attention and FFN around the hidden state.

use candle_core::{Device, Result, Tensor, Var};
use format::Role;

use crate::attention::Attention;
use crate::config::{Config, View};
use crate::family::HeadNorm;
use crate::fused::{Activation, Glu, Product, RmsNorm};
use crate::rotary::Rotations;

/// A matrix, (outputs, inputs) in candle's order, and what is added to products with it.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// What a layer has besides its FFN matrices.
pub(crate) struct Layer {
    pub(crate) view: View,
    pub(crate) attn_norm: Option<Tensor>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: Option<Tensor>,
    pub(crate) k_norm: Option<Tensor>,
    pub(crate) output: Linear,
    pub(crate) attn_post_norm: Option<Tensor>,
    pub(crate) ffn_norm: Option<Tensor>,
    pub(crate) ffn_post_norm: Option<Tensor>,
}

/// What an FFN computes of its first products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FfnForm {
    /// activation(gate) * up.
    Gated(Activation),
    /// The same of the two halves of what `up` gives, the gate first.
    GateInUp(Activation),
    /// activation(up).
    Ungated(Activation),
}

/// The FFN matrices of one layer.
#[derive(Clone)]
pub(crate) struct FfnWeights {
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) form: FfnForm,
}

impl Linear {
    /// x W^T and the bias; `x`: (tokens, inputs).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = match self.weight.is_variable() {
            true => linear(x, &self.weight)?,
            false => x.apply_op1(Product { w: self.weight.clone() })?,
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.clone() }
    }
}

impl Layer {
    /// The hidden state after attention; `x`: (tokens, n_embd).
    pub(crate) fn attend(
        &self,
        x: &Tensor,
        rotations: &Rotations,
        config: &Config,
    ) -> Result<Tensor> {
        let normed = normed(x, self.attn_norm.as_ref(), config)?;
        let whole = config.family.head_norm == HeadNorm::Whole;
        let turned = |product: &Linear, norm: Option<&Tensor>, n| {
            let values = product.forward(&normed)?;
            let values = if whole { self::normed(&values, norm, config)? } else { values };
            let heads = heads(&values, n)?;
            let heads = if whole { heads } else { self::normed(&heads, norm, config)? };
            match self.view.rotary {
                Some(index) => rotations.apply(index, &heads),
                None => Ok(heads),
            }
        };
        let q = turned(&self.q, self.q_norm.as_ref(), config.n_head)?;
        let k = turned(&self.k, self.k_norm.as_ref(), config.n_head_kv)?;
        let v = heads(&self.v.forward(&normed)?, config.n_head_kv)?;
        let (scale, cap) = (config.score_scale, config.score_cap);
        let attention = Attention { scale, cap, window: self.view.window };
        let attended = q.apply_op3(&k, &v, attention)?.transpose(0, 1)?.flatten_from(1)?;
        let output = self.output.forward(&attended)?;
        x + scaled(self::normed(&output, self.attn_post_norm.as_ref(), config)?, config)?
    }

    /// What gate and up see of the state after attention.
    pub(crate) fn ffn_input(&self, x: &Tensor, config: &Config) -> Result<Tensor> {
        normed(x, self.ffn_norm.as_ref(), config)
    }

    /// What the layer adds to the state after attention, of what comes out of down.
    pub(crate) fn behind_down(&self, output: &Tensor, config: &Config) -> Result<Tensor> {
        scaled(normed(output, self.ffn_post_norm.as_ref(), config)?, config)
    }

    /// The hidden state after the layer.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        ffn: &FfnWeights,
        rotations: &Rotations,
        config: &Config,
    ) -> Result<Tensor> {
        let x = self.attend(x, rotations, config)?;
        let down_input = ffn.down_input(&self.ffn_input(&x, config)?)?;
        x + self.behind_down(&ffn.down.forward(&down_input)?, config)?
    }
}

impl FfnWeights {
    /// The matrix of `role`.
    pub(crate) fn weight(&self, role: Role) -> Option<&Tensor> {
        match role {
            Role::Gate => self.gate.as_ref().map(|gate| &gate.weight),
            Role::Up => Some(&self.up.weight),
            Role::Down => Some(&self.down.weight),
            _ => None,
        }
    }

    /// The same matrices, of which no gradients are kept.
    pub(crate) fn detached(&self) -> Self {
        let gate = self.gate.as_ref().map(Linear::detached);
        Self { gate, up: self.up.detached(), down: self.down.detached(), ..*self }
    }

    /// The matrices that read the FFN's input.
    pub(crate) fn first(&self) -> Vec<&Linear> {
        self.gate.iter().chain([&self.up]).collect()
    }

    /// What down sees, of what the matrices of [`Self::first`] give.
    pub(crate) fn gated(&self, outputs: &[Tensor]) -> Result<Tensor> {
        self.form.apply(outputs)
    }

    /// What down sees.
    pub(crate) fn down_input(&self, input: &Tensor) -> Result<Tensor> {
        let outputs: Vec<Tensor> =
            self.first().into_iter().map(|w| w.forward(input)).collect::<Result<_>>()?;
        self.gated(&outputs)
    }
}

impl FfnForm {
    /// What down sees, of what the matrices before it give in the order of their roles, (tokens, any) each.
    pub(crate) fn apply(self, outputs: &[Tensor]) -> Result<Tensor> {
        let up = &outputs[outputs.len() - 1];
        match self {
            Self::Gated(activation) => outputs[0].apply_op2(up, Glu { activation }),
            Self::GateInUp(activation) => {
                let n = up.dim(1)? / 2;
                let half = |start| up.narrow(1, start, n)?.contiguous();
                half(0)?.apply_op2(&half(n)?, Glu { activation })
            }
            Self::Ungated(activation) => up.apply_op2(&up.ones_like()?, Glu { activation }),
        }
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

/// x / sqrt(mean x^2 + eps) * weight over the innermost dimension, where there is a weight.
pub(crate) fn normed(x: &Tensor, weight: Option<&Tensor>, config: &Config) -> Result<Tensor> {
    match weight {
        Some(weight) => x.apply_op2(weight, RmsNorm { eps: config.rms_eps }),
        None => Ok(x.clone()),
    }
}

/// What is added to the hidden state.
fn scaled(x: Tensor, config: &Config) -> Result<Tensor> {
    match config.residual_scale {
        1.0 => Ok(x),
        scale => x * f64::from(scale),
    }
}

/// A constant in F32.
pub(crate) fn constant(values: Vec<f32>, dims: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, dims, &Device::Cpu)
}
