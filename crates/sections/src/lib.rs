//! Blocks of 8 inputs, each the sum of one atom from every section: scheme `sections`.
//!
//! Row r stands for `row_scale[r] * sum over sections of atom[section][winner]`, block by block, plus
//! corrections of single weights. A winner takes 4 bits, so a weight takes S / 2 bits; the layout of the
//! codes is what the run time looks up as it is, see [`format::sections::SectionsLayout`].
//!
//! The winners of a block are found by a beam search. With a second moment H of the inputs the error of a
//! finished block is made up for by the blocks to its right, and scales and atoms are refitted under H.
//!
//! Everything here is plain arithmetic on slices: no FFI, no files, and the same bytes for the same input
//! whatever the number of threads.
#![forbid(unsafe_code)]

mod allocate;
mod beam;
mod cache;
mod encode;
mod gradient;
mod learn;
mod metric;
mod params;
mod parts;
mod probe;
mod refit;
mod search;

use std::sync::Arc;

use format::{CodecError, MatrixShape, Sidecar, SidecarSpec};
use numerics::{Codec, EncodeContext, check_finite};

pub use allocate::{Choice, SHARED_SECTIONS, allocate, errors_by_sections};
pub use cache::{InputKey, InputMetrics, MetricCache};
pub use gradient::PartsGradient;
pub use metric::Metric;
pub use params::SectionsParams;
pub use parts::{SectionsParts, pack, unpack};
pub use probe::Probe;

/// The codec of the scheme `sections`.
#[derive(Clone, Debug)]
pub struct SectionsCodec {
    /// What to learn and how to search.
    pub params: SectionsParams,
    metric: Option<Arc<Metric>>,
}

impl SectionsCodec {
    /// Codec for inputs that are white or have the importance of the [`EncodeContext`].
    #[must_use]
    pub fn new(params: SectionsParams) -> Self {
        Self { params, metric: None }
    }

    /// Codec for inputs with `metric`, which then takes the place of the context's importance.
    #[must_use]
    pub fn with_metric(self, metric: Arc<Metric>) -> Self {
        Self { metric: Some(metric), ..self }
    }

    fn metric(
        &self,
        shape: MatrixShape,
        importance: Option<&[f32]>,
    ) -> Result<Arc<Metric>, CodecError> {
        match (&self.metric, importance) {
            (Some(metric), _) => metric.check(shape).map(|()| Arc::clone(metric)),
            (None, Some(h)) => Metric::diagonal(h, shape).map(Arc::new),
            (None, None) => Ok(Arc::new(Metric::white(shape.d_in))),
        }
    }
}

impl Codec for SectionsCodec {
    fn scheme(&self) -> &'static str {
        format::Scheme::Sections.as_str()
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
        self.params.check(shape)?;
        assert_eq!(weights.len(), shape.n_weights(), "weights do not fill {shape}");
        check_finite(weights, shape)?;
        let metric = self.metric(shape, context.importance)?;
        encode::Fit { params: &self.params, weights, shape, metric: &metric, context }.run()
    }

    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError> {
        Ok(SectionsParts::read(sidecars, shape)?.decode())
    }
}
