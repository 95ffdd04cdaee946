//! A matrix in SeedDelta form: fitting, decoding, reading and writing.

use format::coo::Layout;
use format::seeddelta::{Base, BaseSpec, BaseType};
use format::{CodecError, MatrixShape, Sidecar};
use numerics::coo::Coo;
use rayon::prelude::*;

use crate::fit::{fit, subtract_all};
use crate::part::add_row;
use crate::{Delta, SeedDeltaCodec};

/// `diag(row_scale) * W0 + delta`.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedDelta {
    base: Base,
    delta: Coo,
}

impl SeedDelta {
    /// Fits `codec`'s form to `weights` `[d_in, d_out]`: base, row scale, then the delta on what the
    /// stored (rounded) base leaves. Inputs with mean squares `importance` `[d_in]`, or white.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if a parameter does not fit the shape, [`CodecError::NonFinite`].
    ///
    /// # Panics
    /// If a length does not fit `shape`.
    pub fn fit(
        codec: &SeedDeltaCodec,
        weights: &[f32],
        shape: MatrixShape,
        importance: Option<&[f32]>,
    ) -> Result<Self, CodecError> {
        codec.check(shape)?;
        assert_eq!(weights.len(), shape.n_weights());
        assert!(importance.is_none_or(|h| h.len() == shape.d_in));
        numerics::check_finite(weights, shape)?;
        let base_type = codec.base_type;
        let fitted = fit(weights, shape, &codec.base, base_type, importance, codec.row_scale)?;
        let (parts, row_scale) = (fitted.parts, fitted.gains);
        // Without a base nothing is stored in its type: reading back cannot tell, so it does not count.
        let base_type = if parts.is_empty() { BaseType::default() } else { base_type };
        let delta = match codec.delta {
            Delta::None => Coo::empty(shape),
            Delta::Coo { k } => {
                let residual = subtract_all(weights, shape, &parts, row_scale.as_deref());
                Coo::largest_per_row(&residual, shape, k, importance)?
            }
        };
        Ok(Self { base: Base { shape, base_type, parts, row_scale }, delta })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.base.shape
    }

    /// The base with its parameters.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// What the base is, its parts in file order.
    #[must_use]
    pub fn spec(&self) -> BaseSpec {
        self.base.spec()
    }

    /// The sparse correction.
    #[must_use]
    pub fn delta(&self) -> &Coo {
        &self.delta
    }

    /// The dense matrix `[d_in, d_out]`.
    #[must_use]
    pub fn to_dense(&self) -> Vec<f32> {
        let Base { shape, parts, row_scale, .. } = &self.base;
        let mut dense = vec![0.0; shape.n_weights()];
        dense.par_chunks_mut(shape.d_in.max(1)).enumerate().for_each(|(row, out)| {
            let gain = row_scale.as_ref().map_or(1.0, |g| g[row]);
            parts.iter().for_each(|part| add_row(part, row, gain, out));
        });
        self.delta.add_to(&mut dense);
        dense
    }

    /// The matrix as tensors, see the [crate's table](crate).
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if the delta does not fit its layout.
    pub fn to_sidecars(&self) -> Result<Vec<Sidecar>, CodecError> {
        let mut sidecars = self.base.to_sidecars()?;
        sidecars.extend(self.delta.to_sidecars(Layout::PerRow)?);
        Ok(sidecars)
    }

    /// Reads tensors, which may come from an untrusted file: types, shapes, sizes, the range and order of
    /// indices and the finiteness of values are checked. Which parts there are follows from the tensors.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] naming the tensor.
    pub fn from_sidecars(sidecars: &[Sidecar], shape: MatrixShape) -> Result<Self, CodecError> {
        let base = Base::read(sidecars, shape)?;
        let delta = Coo::from_sidecars(Layout::PerRow, sidecars, shape)?;
        Ok(Self { base, delta: delta.unwrap_or_else(|| Coo::empty(shape)) })
    }
}
