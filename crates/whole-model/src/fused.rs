//! Row-wise parts of a transformer layer as single candle operations with their own derivatives: on the CPU the
//! chains of elementary operations that they replace would cost more than the products, and run on one thread.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The values behind a contiguous tensor.
///
/// # Errors
/// If it is not contiguous, or not F32.
pub fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the input of a fused operation must be contiguous"),
    }
}

/// All values of a tensor.
///
/// # Errors
/// If it is not F32.
pub fn to_vec(t: &Tensor) -> Result<Vec<f32>> {
    t.contiguous()?.flatten_all()?.to_vec1()
}

/// A tensor of these values and the shape of `like`.
///
/// # Errors
/// If there are more or fewer values.
pub fn from_vec(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// Values x become `cap * tanh(x / cap)`, or stay as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SoftCap(pub(crate) Option<f32>);

impl SoftCap {
    /// `x` under the cap.
    pub(crate) fn of(self, x: f32) -> f32 {
        self.0.map_or(x, |cap| cap * (x / cap).tanh())
    }

    /// By how much a value under the cap changes with the one that it was before.
    pub(crate) fn slope(self, capped: f32) -> f32 {
        self.0.map_or(1.0, |cap| 1.0 - (capped / cap).powi(2))
    }
}

/// Length of the innermost dimension.
#[must_use]
pub fn n_columns(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1)
}

/// `x / rms(x) * w` over the innermost dimension; x: [d, n], w: `[d]`.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    fn inverse(&self, x: &[f32]) -> f32 {
        let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        (mean + self.eps).sqrt().recip()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (floats(s1, l1)?, floats(s2, l2)?);
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(w.len()).zip(x.par_chunks(w.len())).for_each(|(y, x)| {
            let inverse = self.inverse(x);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * inverse * w;
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (to_vec(x)?, to_vec(w)?, to_vec(grad)?);
        let d = ws.len();
        let mut dx = vec![0.0f32; xs.len()];
        dx.par_chunks_mut(d).zip(xs.par_chunks(d).zip(gs.par_chunks(d))).for_each(
            |(dx, (x, g))| {
                let inverse = self.inverse(x);
                let dot: f32 = x.iter().zip(g).zip(&ws).map(|((x, g), w)| x * g * w).sum();
                let along = dot * inverse * inverse / d as f32;
                for (i, dx) in dx.iter_mut().enumerate() {
                    *dx = inverse * (g[i] * ws[i] - along * x[i]);
                }
            },
        );
        let mut dw = vec![0.0f32; d];
        for (x, g) in xs.chunks(d).zip(gs.chunks(d)) {
            let inverse = self.inverse(x);
            dw.iter_mut().zip(x.iter().zip(g)).for_each(|(dw, (x, g))| *dw += x * g * inverse);
        }
        Ok((Some(from_vec(dx, x)?), Some(from_vec(dw, w)?)))
    }
}

/// `x W^T` for a constant W, (outputs, inputs) in candle's order: candle's own product would form the gradient of W as
/// well. x: (tokens, inputs).
pub struct Product {
    /// The constant.
    pub w: Tensor,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "constant-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?.to_vec();
        let x = Tensor::from_vec(x, layout.shape(), self.w.device())?;
        let y = x.matmul(&self.w.t()?)?;
        Ok((CpuStorage::F32(to_vec(&y)?), y.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.matmul(&self.w)?))
    }
}

/// The function of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, as ggml computes GELU.
    Gelu,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

impl Activation {
    /// All that are known.
    pub const ALL: [Self; 5] =
        [Self::Silu, Self::Gelu, Self::QuickGelu, Self::Relu, Self::ReluSquared];

    /// Its value and its derivative at `x`.
    fn at(self, x: f32) -> (f32, f32) {
        // x / (1 + exp(-rate x)).
        let swish = |rate: f32| {
            let sigmoid = 1.0 / (1.0 + (-rate * x).exp());
            let value = x * sigmoid;
            (value, sigmoid + rate * value * (1.0 - sigmoid))
        };
        match self {
            Self::Silu => swish(1.0),
            Self::QuickGelu => swish(1.702),
            Self::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
            Self::ReluSquared => (x.max(0.0).powi(2), 2.0 * x.max(0.0)),
            Self::Gelu => {
                const CUBE: f32 = 0.044_715;
                let root = (2.0 / std::f32::consts::PI).sqrt();
                let tanh = (root * (x + CUBE * x * x * x)).tanh();
                let slope = root * (1.0 + 3.0 * CUBE * x * x) * (1.0 - tanh * tanh);
                (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh + x * slope))
            }
        }
    }
}

/// `activation(gate) * up`, elementwise. Source: Shazeer, "GLU variants improve transformer", 2020.
pub struct Glu {
    /// Of the gate.
    pub activation: Activation,
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 16 * 1024;

impl CustomOp2 for Glu {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(s1, l1)?, floats(s2, l2)?);
        let mut y = vec![0.0f32; gate.len()];
        let chunks = y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)));
        chunks.for_each(|(y, (gate, up))| {
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = self.activation.at(*g).0 * u;
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut gates, mut ups, grads) = (to_vec(gate)?, to_vec(up)?, to_vec(grad)?);
        let chunks = gates.par_chunks_mut(CHUNK).zip(ups.par_chunks_mut(CHUNK));
        chunks.zip(grads.par_chunks(CHUNK)).for_each(|((gates, ups), grads)| {
            for ((g, u), dy) in gates.iter_mut().zip(ups).zip(grads) {
                let (value, slope) = self.activation.at(*g);
                (*g, *u) = (dy * *u * slope, dy * value);
            }
        });
        Ok((Some(from_vec(gates, gate)?), Some(from_vec(ups, up)?)))
    }
}

/// What tests of such operations share.
pub mod check {
    use candle_core::{Device, Tensor, Var};

    use super::{from_vec, to_vec};

    /// A variable of `n` values between -1 and 1.
    ///
    /// # Panics
    /// If `shape` has not `n` values.
    #[must_use]
    pub fn wave(n: usize, shape: (usize, usize), phase: f32) -> Var {
        let values: Vec<f32> = (0..n).map(|i| (1.7 * i as f32 + phase).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Checks the derivative of `sum(f(vars) * wave)` against central differences.
    ///
    /// # Panics
    /// If they differ.
    pub fn derivative(vars: &[&Var], f: impl Fn() -> Tensor) {
        let loss = || {
            let y = f().flatten_all().unwrap();
            let n = y.elem_count();
            let weights = wave(n, (n, 1), 0.3).flatten_all().unwrap();
            (y * weights).unwrap().sum_all().unwrap()
        };
        let grads = loss().backward().unwrap();
        let value = || loss().to_scalar::<f32>().unwrap();
        for var in vars {
            let grad = to_vec(grads.get(var).unwrap()).unwrap();
            let at = to_vec(var).unwrap();
            for i in 0..at.len() {
                let mut shifted = at.clone();
                let mut moved = |step: f32| {
                    shifted[i] = at[i] + step;
                    var.set(&from_vec(shifted.clone(), var).unwrap()).unwrap();
                    value()
                };
                let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                var.set(&from_vec(at.clone(), var).unwrap()).unwrap();
                assert!((numeric - grad[i]).abs() < 2e-3, "{i}: {numeric} {}", grad[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check::{derivative, wave};
    use super::*;

    #[test]
    fn derivatives_are_those_of_the_functions() {
        let (x, u) = (wave(24, (3, 8), 0.6), wave(24, (3, 8), 1.0));
        let w =
            candle_core::Var::from_tensor(&wave(8, (8, 1), 2.0).flatten_all().unwrap()).unwrap();
        derivative(&[&x, &w], || x.apply_op2(&w, RmsNorm { eps: 1e-5 }).unwrap());
        let matrix = wave(40, (5, 8), 3.0).as_tensor().detach();
        derivative(&[&x], || x.apply_op1(Product { w: matrix.clone() }).unwrap());
        // The wave has no values so near 0 that a step goes over the edge of ReLU.
        for activation in Activation::ALL {
            derivative(&[&x, &u], || x.apply_op2(&u, Glu { activation }).unwrap());
        }
    }

    /// The error function by its power series.
    fn erf(x: f32) -> f32 {
        let (mut term, mut sum) = (x, x);
        for n in 1..20 {
            term *= -x * x / n as f32;
            sum += term / (2 * n + 1) as f32;
        }
        2.0 / std::f32::consts::PI.sqrt() * sum
    }

    #[test]
    fn values_are_those_of_the_definition() {
        let x = wave(6, (2, 3), 0.4);
        let w = Tensor::new(&[1f32, 2.0, -1.0], x.device()).unwrap();
        let found = to_vec(&x.apply_op2(&w, RmsNorm { eps: 0.1 }).unwrap()).unwrap();
        for (row, found) in to_vec(&x).unwrap().chunks(3).zip(found.chunks(3)) {
            let rms = (row.iter().map(|v| v * v).sum::<f32>() / 3.0 + 0.1).sqrt();
            let expected = [row[0] / rms, 2.0 * row[1] / rms, -row[2] / rms];
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
        }
        let ones = x.ones_like().unwrap();
        let of = |activation| to_vec(&x.apply_op2(&ones, Glu { activation }).unwrap()).unwrap();
        let (silu, gelu) = (of(Activation::Silu), of(Activation::Gelu));
        for ((x, silu), gelu) in to_vec(&x).unwrap().into_iter().zip(silu).zip(gelu) {
            assert!((x / (1.0 + (-x).exp()) - silu).abs() < 1e-6);
            // x Phi(x), which the tanh form comes near.
            let phi = 0.5 * (1.0 + erf(x / std::f32::consts::SQRT_2));
            assert!((x * phi - gelu).abs() < 1e-3, "{x} {gelu}");
        }
    }
}
