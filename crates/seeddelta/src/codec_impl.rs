//! SeedDelta as a filling of the [`Codec`] trait.

use format::coo::Layout;
use format::seeddelta::{BaseSpec, BaseType, row_scale_spec};
use format::{CodecError, MatrixShape, Sidecar, SidecarSpec, checked_sidecar};
use numerics::{Codec, EncodeContext};
use serde::{Deserialize, Serialize};

use crate::SeedDelta;

/// The sparse correction on top of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Delta {
    /// No correction.
    None,
    /// The largest residuals of every row; with an importance h those with the largest
    /// `|residual| * sqrt(h)`.
    Coo {
        /// Entries per row, from 1 to d_in.
        k: usize,
    },
}

/// Parameters of the SeedDelta codec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedDeltaCodec {
    /// The structured base W0.
    pub base: BaseSpec,
    /// Storage of the base's parameters.
    pub base_type: BaseType,
    /// Whether every row of the base gets a least-squares factor (F16). Has no effect without a base;
    /// only `identity` and `circulant` gain from it, the others hold a factor per row already.
    pub row_scale: bool,
    /// The correction.
    pub delta: Delta,
}

impl SeedDeltaCodec {
    /// Checks the parameters against `shape`.
    pub(crate) fn check(&self, shape: MatrixShape) -> Result<(), CodecError> {
        self.sidecars(shape).map(|_| ())
    }

    fn delta_specs(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        match self.delta {
            Delta::None => Ok(Vec::new()),
            Delta::Coo { k } if k == 0 || k > shape.d_in => Err(CodecError::Parameter {
                name: "--delta-k",
                value: k.to_string(),
                shape,
                reason: format!("use 1 to {}, the length of a row", shape.d_in),
            }),
            Delta::Coo { k } => Layout::PerRow.specs(shape, k),
        }
    }
}

impl Codec for SeedDeltaCodec {
    fn scheme(&self) -> &'static str {
        format::seeddelta::SCHEME
    }

    fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        let refuse = |reason: &str| CodecError::Parameter {
            name: "--base",
            value: self.base.to_string(),
            shape,
            reason: reason.to_owned(),
        };
        if shape.checked_n_weights().is_none_or(|n| n == 0) {
            return Err(refuse("the matrix has no weights, or too many"));
        }
        let mut specs = self.base.specs(shape, self.base_type)?;
        if self.row_scale && !specs.is_empty() {
            specs.push(row_scale_spec(shape));
        }
        specs.extend(self.delta_specs(shape)?);
        if specs.is_empty() {
            return Err(refuse("without a delta nothing is left; choose a base or --delta coo"));
        }
        Ok(specs)
    }

    fn encode(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        context.progress.stage("fit", 1);
        let model = SeedDelta::fit(self, weights, shape, context.importance)?;
        context.progress.advance(1);
        model.to_sidecars()
    }

    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError> {
        // The tensors describe themselves, but one that is missing must not pass for "not asked for".
        for spec in self.sidecars(shape)? {
            checked_sidecar(sidecars, &spec)?;
        }
        Ok(SeedDelta::from_sidecars(sidecars, shape)?.to_dense())
    }
}
