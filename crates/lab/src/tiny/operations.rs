//! Parts of the forward pass that only this model has as single operations, beside those of [`whole_model::fused`].

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use whole_model::fused::{floats, from_vec, n_columns, to_vec};

use crate::tiny::batch::NO_LABEL;

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

/// Sum of `-log softmax(logits)[label] / n_counted` over the rows that have a label, as a tensor of one element.
/// Logits: [n_vocab, n].
pub struct CrossEntropy {
    /// Label of each row, [`NO_LABEL`] for none.
    pub labels: Vec<u32>,
    /// Number of labels to divide by: that of a whole batch, of which this may be a part.
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
        let rows = x.chunks(n).zip(&self.labels).filter(|(_, t)| **t != NO_LABEL);
        let sum: f32 = rows.map(|(row, &t)| log_sum_exp(row) - row[t as usize]).sum();
        Ok((CpuStorage::F32(vec![sum / self.n_counted as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let n = x.dim(candle_core::D::Minus1)?;
        let factor = grad.to_scalar::<f32>()? / self.n_counted as f32;
        let mut dx = to_vec(x)?;
        for (row, &t) in dx.chunks_mut(n).zip(&self.labels) {
            if t == NO_LABEL {
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
    use whole_model::fused::check::{derivative, wave};

    use super::*;

    #[test]
    fn derivatives_are_those_of_the_functions() {
        let x = wave(24, (3, 8), 0.0);
        let scores = wave(32, (8, 4), 0.5);
        derivative(&[&scores], || scores.apply_op1(CausalSoftmax { scale: 0.7 }).unwrap());
        let rope = || Rope { length: 3, head_dim: 4, freq_base: 100.0, backwards: false };
        derivative(&[&x], || x.apply_op1(rope()).unwrap());
        let labels = vec![2, NO_LABEL, 7];
        derivative(&[&x], || {
            x.apply_op1(CrossEntropy { labels: labels.clone(), n_counted: 2 }).unwrap()
        });
    }
}
