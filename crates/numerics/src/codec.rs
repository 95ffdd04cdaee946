//! The contract between codecs and the programs that use them.

use format::{CodecError, MatrixShape, Sidecar, SidecarSpec};
use rayon::prelude::*;

/// Dense products, so that codecs stay free of FFI: the programs pass ggml's threaded `mul_mat`.
pub trait MatMul: Sync {
    /// `out[j * m + i] = sum_t a[i * k + t] * b[j * k + t]`, as `ggml_mul_mat(a, b)`.
    ///
    /// The result must not depend on the number of threads.
    ///
    /// # Shapes
    /// `a`: [k, m], `b`: [k, n] -> `out`: [m, n], innermost dimension first, all contiguous.
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]);
}

/// Plain product over rayon's threads: the reference for other implementations, and enough for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceMatMul;

impl MatMul for ReferenceMatMul {
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        let m = a.len() / k;
        out.par_chunks_mut(m).zip(b.par_chunks(k)).for_each(|(out, b)| {
            for (out, a) in out.iter_mut().zip(a.chunks(k)) {
                *out = a.iter().zip(b).map(|(a, b)| a * b).sum();
            }
        });
    }
}

/// Where a long encoding reports how far it is. All methods do nothing unless overridden.
pub trait Progress: Sync {
    /// A stage (`learn`, `encode`, ...) of `total` steps begins.
    fn stage(&self, _name: &str, _total: u64) {}
    /// `n` more steps of the stage are done.
    fn advance(&self, _n: u64) {}
}

impl Progress for () {}

/// What the surrounding program lends a codec while it encodes one matrix.
#[derive(Clone, Copy)]
pub struct EncodeContext<'a> {
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
    /// Mean square E[x_i^2] of every input, `[d_in]`; `None` means white inputs.
    pub importance: Option<&'a [f32]>,
    /// Seed of every random choice for this matrix.
    pub seed: u64,
    /// Where progress is reported.
    pub progress: &'a dyn Progress,
}

/// A lossy code for one weight matrix, stored as sidecar tensors.
///
/// Encoding is deterministic: the same matrix, parameters and context give the same bytes whatever
/// the number of threads.
pub trait Codec: Sync {
    /// Name of the scheme, as recorded in the file (`sign+row_scale`).
    fn scheme(&self) -> &'static str;

    /// Sidecar tensors for a matrix of `shape`, in file order, before encoding: exact types and sizes.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if the parameters do not fit the shape.
    fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError>;

    /// Encodes `weights`, [d_in, d_out].
    ///
    /// # Errors
    /// [`CodecError::Parameter`] or [`CodecError::NonFinite`].
    fn encode(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError>;

    /// The dense matrix [d_in, d_out] that `sidecars` stand for.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if a tensor is missing or malformed.
    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError>;
}

/// Checks that every weight is finite.
///
/// # Errors
/// [`CodecError::NonFinite`] with the first offender.
pub fn check_finite(weights: &[f32], shape: MatrixShape) -> Result<(), CodecError> {
    match weights.par_iter().position_first(|w| !w.is_finite()) {
        None => Ok(()),
        Some(index) => Err(CodecError::NonFinite {
            index,
            row: index / shape.d_in,
            column: index % shape.d_in,
            value: weights[index],
        }),
    }
}
