//! Row-wise parts of the forward pass as single operations with their own derivatives: on the CPU the chains of
//! elementary operations that they replace would cost more than the products.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::batch::NO_TARGET;

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the input of a fused operation must be contiguous"),
    }
}

fn to_vec(t: &Tensor) -> Result<Vec<f32>> {
    t.contiguous()?.flatten_all()?.to_vec1()
}

fn from_vec(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

fn n_columns(layout: &Layout) -> usize {
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

/// `silu(gate) * up`, elementwise.
pub struct SwiGlu;

/// Elements that one thread takes at a time.
const CHUNK: usize = 16 * 1024;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
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
                *y = g / (1.0 + (-g).exp()) * u;
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
                let sigmoid = 1.0 / (1.0 + (-*g).exp());
                let silu = *g * sigmoid;
                (*g, *u) = (dy * *u * (sigmoid + silu * (1.0 - sigmoid)), dy * silu);
            }
        });
        Ok((Some(from_vec(gates, gate)?), Some(from_vec(ups, up)?)))
    }
}

/// Softmax over the keys up to the query's own place; the row number modulo the row length is the place.
/// Scores: [n, n * ...] with keys innermost.
pub struct CausalSoftmax {
    /// Factor of the scores.
    pub scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, n) = (floats(storage, layout)?, n_columns(layout));
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(n).zip(x.par_chunks(n)).enumerate().for_each(|(row, (y, x))| {
            let visible = row % n + 1;
            let (y, x) = (&mut y[..visible], &x[..visible]);
            let peak = x.iter().fold(f32::MIN, |m, &v| m.max(v));
            for (y, x) in y.iter_mut().zip(x) {
                *y = ((x - peak) * self.scale).exp();
            }
            let inverse = y.iter().sum::<f32>().recip();
            y.iter_mut().for_each(|y| *y *= inverse);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = x.dim(candle_core::D::Minus1)?;
        let (mut ys, grads) = (to_vec(y)?, to_vec(grad)?);
        ys.par_chunks_mut(n).zip(grads.par_chunks(n)).for_each(|(y, g)| {
            let dot: f32 = y.iter().zip(g).map(|(y, g)| y * g).sum();
            y.iter_mut().zip(g).for_each(|(y, g)| *y *= self.scale * (g - dot));
        });
        Ok(Some(from_vec(ys, x)?))
    }
}

/// Rotary positions of pairs of neighbours, as llama.cpp's `LLAMA_ROPE_TYPE_NORM`; the row number modulo
/// `length` is the position. x: [heads * head_dim, n].
pub struct Rope {
    /// Rows of one text.
    pub length: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Base of the angles.
    pub freq_base: f32,
    /// Turns back, for the derivative.
    pub backwards: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, d) = (floats(storage, layout)?, n_columns(layout));
        let half = self.head_dim / 2;
        let sign = if self.backwards { -1.0 } else { 1.0 };
        let turns: Vec<(f32, f32)> = (0..self.length * half)
            .map(|i| {
                let (position, pair) = (i / half, i % half);
                let angle = position as f32
                    * self.freq_base.powf(-2.0 * pair as f32 / self.head_dim as f32);
                (angle.cos(), sign * angle.sin())
            })
            .collect();
        let mut y = vec![0.0f32; x.len()];
        y.par_chunks_mut(d).zip(x.par_chunks(d)).enumerate().for_each(|(row, (y, x))| {
            let turns = &turns[row % self.length * half..][..half];
            for (y, x) in y.chunks_mut(self.head_dim).zip(x.chunks(self.head_dim)) {
                for ((y, x), (cos, sin)) in y.chunks_mut(2).zip(x.chunks(2)).zip(turns) {
                    y[0] = x[0] * cos - x[1] * sin;
                    y[1] = x[0] * sin + x[1] * cos;
                }
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { backwards: !self.backwards, ..*self };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// Sum of `-log softmax(logits)[target] / n_counted` over the rows that have a target, as a tensor of one element.
/// Logits: [n_vocab, n].
pub struct CrossEntropy {
    /// Target of each row, [`NO_TARGET`] for none.
    pub targets: Vec<u32>,
    /// Number of targets to divide by: that of a whole batch, of which this may be a part.
    pub n_counted: usize,
}

/// `log sum exp` of a row.
pub(crate) fn log_sum_exp(row: &[f32]) -> f32 {
    let peak = row.iter().fold(f32::MIN, |m, &v| m.max(v));
    peak + row.iter().map(|v| (v - peak).exp()).sum::<f32>().ln()
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, n) = (floats(storage, layout)?, n_columns(layout));
        let rows = x.chunks(n).zip(&self.targets).filter(|(_, t)| **t != NO_TARGET);
        let sum: f32 = rows.map(|(row, &t)| log_sum_exp(row) - row[t as usize]).sum();
        Ok((CpuStorage::F32(vec![sum / self.n_counted as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = x.dim(candle_core::D::Minus1)?;
        let factor = grad.to_scalar::<f32>()? / self.n_counted as f32;
        let mut dx = to_vec(x)?;
        for (row, &t) in dx.chunks_mut(n).zip(&self.targets) {
            if t == NO_TARGET {
                row.fill(0.0);
                continue;
            }
            let total = log_sum_exp(row);
            row.iter_mut().for_each(|v| *v = factor * (*v - total).exp());
            row[t as usize] -= factor;
        }
        Ok(Some(from_vec(dx, x)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn wave(n: usize, shape: (usize, usize), phase: f32) -> Var {
        let values: Vec<f32> = (0..n).map(|i| (1.7 * i as f32 + phase).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// The derivative of `sum(f(vars) * wave)` against central differences.
    fn check(vars: &[&Var], f: impl Fn() -> Tensor) {
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

    #[test]
    fn derivatives_are_those_of_the_functions() {
        let (x, u) = (wave(24, (3, 8), 0.0), wave(24, (3, 8), 1.0));
        let w = Var::from_tensor(&wave(8, (8, 1), 2.0).flatten_all().unwrap()).unwrap();
        check(&[&x, &w], || x.apply_op2(&w, RmsNorm { eps: 1e-5 }).unwrap());
        check(&[&x, &u], || x.apply_op2(&u, SwiGlu).unwrap());
        let scores = wave(32, (8, 4), 0.5);
        check(&[&scores], || scores.apply_op1(CausalSoftmax { scale: 0.7 }).unwrap());
        let rope = || Rope { length: 3, head_dim: 4, freq_base: 100.0, backwards: false };
        check(&[&x], || x.apply_op1(rope()).unwrap());
        let targets = vec![2, NO_TARGET, 7];
        check(&[&x], || {
            x.apply_op1(CrossEntropy { targets: targets.clone(), n_counted: 2 }).unwrap()
        });
    }
}
