//! The matrix behind the last norm, which is read in blocks: in F32 it may be larger than everything else.

use candle_core::{Device, Tensor};
use ggml::gguf::{GgufFile, TensorInfo};
use rayon::prelude::*;

use crate::TuningError;
use crate::fused::SoftCap;
use crate::layer::{constant, linear};

/// Tokens of the vocabulary whose rows are in memory at a time.
const BLOCK: usize = 4096;

/// Takes hidden states to logits.
pub(crate) struct Output<'a> {
    file: &'a GgufFile,
    /// [n_embd, vocabulary].
    matrix: &'a TensorInfo,
    /// Added to the products, `[vocabulary]` or empty.
    bias: Vec<f32>,
    scale: f32,
    cap: SoftCap,
}

impl<'a> Output<'a> {
    /// Logits are what `scale` and `cap` make of the products with `matrix`.
    pub(crate) fn new(
        (file, matrix): (&'a GgufFile, &'a TensorInfo),
        bias: Vec<f32>,
        scale: f32,
        cap: SoftCap,
    ) -> Self {
        Self { file, matrix, bias, scale, cap }
    }

    pub(crate) fn n_vocab(&self) -> usize {
        self.matrix.n_elements() / self.matrix.dims()[0]
    }

    /// Logits of each of `states`, (tokens, n_embd): tokens by vocabulary.
    pub(crate) fn logits<const N: usize>(
        &self,
        states: [&Tensor; N],
    ) -> Result<[Vec<f32>; N], TuningError> {
        let n_vocab = self.n_vocab();
        let mut logits = states.map(|x| vec![0.0; x.dims()[0] * n_vocab]);
        self.blocks(|first, block| {
            for (x, logits) in states.iter().zip(&mut logits) {
                let product = linear(x, block)?.flatten_all()?.to_vec1::<f32>()?;
                let width = block.dim(0)?;
                let rows = logits.par_chunks_mut(n_vocab).zip(product.par_chunks(width));
                rows.for_each(|(row, part)| {
                    let row = row[first..first + width].iter_mut().zip(part);
                    row.enumerate().for_each(|(i, (to, from))| *to = self.value(first + i, *from));
                });
            }
            Ok(())
        })?;
        Ok(logits)
    }

    /// The gradient at the states, (tokens, n_embd), where that at the products with the matrix is `gradient`, tokens
    /// by vocabulary.
    pub(crate) fn back(&self, gradient: &[f32]) -> Result<Tensor, TuningError> {
        let n_vocab = self.n_vocab();
        let n_tokens = gradient.len() / n_vocab;
        let mut sum: Option<Tensor> = None;
        self.blocks(|first, block| {
            let width = block.dim(0)?;
            let rows = gradient.chunks(n_vocab).flat_map(|row| &row[first..first + width]);
            let part = constant(rows.copied().collect(), &[n_tokens, width])?.matmul(block)?;
            sum = Some(match sum.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
            Ok(())
        })?;
        let nothing = || Tensor::zeros((n_tokens, 0), candle_core::DType::F32, &Device::Cpu);
        Ok(sum.map_or_else(nothing, Ok)?)
    }

    /// The logit of a token that `product` with the matrix is.
    fn value(&self, token: usize, product: f32) -> f32 {
        let scaled = self.scale * (product + self.bias.get(token).unwrap_or(&0.0));
        self.cap.of(scaled)
    }

    /// By how much a logit changes with the product that it was before.
    pub(crate) fn slope(&self, logit: f32) -> f32 {
        self.scale * self.cap.slope(logit)
    }

    /// Calls `f` with the first row and the rows, (rows, n_embd), of every block.
    fn blocks(
        &self,
        mut f: impl FnMut(usize, &Tensor) -> Result<(), TuningError>,
    ) -> Result<(), TuningError> {
        let (n_embd, n_vocab) = (self.matrix.dims()[0], self.n_vocab());
        for first in (0..n_vocab).step_by(BLOCK) {
            let rows = first..n_vocab.min(first + BLOCK);
            let dims = [rows.len(), n_embd];
            f(first, &constant(self.file.rows_to_f32(self.matrix, rows)?, &dims)?)?;
        }
        self.file.release(self.matrix);
        Ok(())
    }
}
