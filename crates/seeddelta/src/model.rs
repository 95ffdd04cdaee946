//! A matrix in SeedDelta form: decoding, applying, reading and writing.

use codec::coo::{Coo, Layout};
use codec::{CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, find_sidecar};
use half::f16;
use rayon::prelude::*;

use crate::fit::{fit, subtract_all};
use crate::part::{Part, finite_values};
use crate::{BaseSpec, BaseType, Delta, Operator, SeedDeltaCodec};

/// Suffix of the row scale's tensor.
const ROW_SCALE: &str = "row_scale";

/// `diag(row_scale) * W0 + delta`.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedDelta {
    shape: MatrixShape,
    base_type: BaseType,
    parts: Vec<Part>,
    row_scale: Option<Vec<f32>>,
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
        codec::check_finite(weights, shape)?;
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
        Ok(Self { shape, base_type, parts, row_scale, delta })
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// The base, its parts in file order.
    #[must_use]
    pub fn base(&self) -> BaseSpec {
        BaseSpec::of(self.parts.iter().map(Part::spec).collect())
    }

    /// The sparse correction.
    #[must_use]
    pub fn delta(&self) -> &Coo {
        &self.delta
    }

    /// The dense matrix `[d_in, d_out]`.
    #[must_use]
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.shape.n_weights()];
        dense.par_chunks_mut(self.shape.d_in.max(1)).enumerate().for_each(|(row, out)| {
            let gain = self.row_scale.as_ref().map_or(1.0, |g| g[row]);
            self.parts.iter().for_each(|part| part.add_row(row, gain, out));
        });
        self.delta.add_to(&mut dense);
        dense
    }

    /// The matrix ready to be applied; plans the FFT of a circulant once.
    #[must_use]
    pub fn operator(self) -> Operator {
        Operator::new(self)
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn row_scale(&self) -> Option<&[f32]> {
        self.row_scale.as_deref()
    }

    /// The matrix as tensors, see the [crate's table](crate).
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if the delta does not fit its layout.
    pub fn to_sidecars(&self) -> Result<Vec<Sidecar>, CodecError> {
        let mut sidecars = Vec::new();
        for part in &self.parts {
            sidecars.extend(part.to_sidecars(self.shape, self.base_type)?);
        }
        if let Some(scale) = &self.row_scale {
            let values: Vec<f16> = scale.iter().map(|&g| codec::coo::f16_clamped(g)).collect();
            sidecars.push(Sidecar::from_f16(ROW_SCALE, &[self.shape.d_out], &values));
        }
        sidecars.extend(self.delta.to_sidecars(Layout::PerRow)?);
        Ok(sidecars)
    }

    /// Reads tensors, which may come from an untrusted file: types, shapes, sizes, the range and order of
    /// indices and the finiteness of values are checked. Which parts there are follows from the tensors.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] naming the tensor.
    pub fn from_sidecars(sidecars: &[Sidecar], shape: MatrixShape) -> Result<Self, CodecError> {
        let bad_shape = || CodecError::Sidecar {
            suffix: "base",
            reason: format!("a matrix of {shape} has no weights, or too many"),
        };
        if shape.checked_n_weights().is_none_or(|n| n == 0) {
            return Err(bad_shape());
        }
        let (parts, base_type) = Part::read_all(sidecars, shape)?;
        let row_scale = match find_sidecar(sidecars, ROW_SCALE) {
            None => None,
            Some(_) => Some(finite_values(sidecars, &row_scale_spec(shape))?),
        };
        let delta = Coo::from_sidecars(Layout::PerRow, sidecars, shape)?;
        let delta = delta.unwrap_or_else(|| Coo::empty(shape));
        Ok(Self { shape, base_type, parts, row_scale, delta })
    }
}

/// Spec of the row scale's tensor.
pub(crate) fn row_scale_spec(shape: MatrixShape) -> SidecarSpec {
    SidecarSpec::new(ROW_SCALE, ElementType::F16, &[shape.d_out])
}
