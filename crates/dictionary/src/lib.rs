//! One dictionary over the whole input of a matrix: schemes `sign`, `sign+row_scale`, `sign+vals`.
//!
//! Every output row is `row_scale * sum_slots sign(code) * val * atom[|code| - 1]`, with 1 where a factor
//! is not stored. Slots are in ascending order of the atom, empty slots (code 0) last, so that a gather
//! walks forward through the projections; a row names an atom at most once and its `vals` are above 0.
//!
//! Everything here is plain arithmetic on slices: no FFI, no files, and the same bytes for the same input
//! whatever the number of threads.
#![forbid(unsafe_code)]

mod encode;
mod fit;
mod gram;
mod learn;
mod metric;
mod oja;
mod params;
mod parts;
mod refit;
mod row_scale;
mod samples;
mod scheme;
mod selection;

use format::{CodecError, MatrixShape, Sidecar, SidecarSpec};
use numerics::{Codec, EncodeContext};

pub use params::{GlobalParams, MIN_DEFAULT_ATOMS, default_n_atoms};
pub use parts::GlobalParts;
pub use row_scale::complete_row_scale;
pub use scheme::{DictType, Encoder};

/// The codec of the global-dictionary schemes.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalCodec {
    /// What to learn and how to encode.
    pub params: GlobalParams,
}

impl GlobalCodec {
    /// Codec with `params`, which are checked against each matrix.
    #[must_use]
    pub fn new(params: GlobalParams) -> Self {
        Self { params }
    }

    /// Encodes `weights` with given atoms instead of learning them.
    ///
    /// The atoms are used as directions: their common norm is chosen anew.
    ///
    /// # Shapes
    /// `weights`: [d_in, d_out], `atoms`: [d_in, M].
    ///
    /// # Errors
    /// As [`Codec::encode`]; also if the number of atoms is not that of the parameters.
    pub fn encode_with_atoms(
        &self,
        weights: &[f32],
        atoms: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        encode::with_atoms(&self.params, weights, atoms, shape, context)
    }
}

impl Codec for GlobalCodec {
    fn scheme(&self) -> &'static str {
        self.params.scheme.as_str()
    }

    fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        self.params.sidecars(shape)
    }

    fn encode(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        encode::learned(&self.params, weights, shape, context)
    }

    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError> {
        Ok(GlobalParts::read(sidecars, shape)?.decode(shape))
    }
}
