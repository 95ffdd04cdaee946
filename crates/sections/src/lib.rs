//! Blocks of 8 inputs, each the sum of one atom from every section: scheme `sections`.
//!
//! Row r stands for `row_scale[r] * sum over sections of atom[section][winner]`, block by block, plus
//! corrections of single weights. A winner takes 4 bits, so a weight takes S / 2 bits; the layout of the
//! codes is what the run time looks up as it is, see [`format::sections::SectionsLayout`].
//!
//! The winners of a block are found by a beam search. With a second moment H of the inputs the error of a
//! finished block is made up for by the blocks to its right, and scales and atoms are refitted under H. At last every block is
//! searched anew with the errors of all others known.
//!
//! Everything here is plain arithmetic on slices: no FFI, no files, and the same bytes for the same input
//! whatever the number of threads.
#![forbid(unsafe_code)]

mod allocate;
mod beam;
mod cache;
mod descent;
mod encode;
mod experts;
mod gradient;
mod learn;
mod metric;
mod params;
mod parts;
mod probe;
mod refit;
mod search;
mod smallest;

use std::sync::Arc;

use format::{CodecError, MatrixShape, Sidecar, SidecarSpec};
use numerics::{Codec, EncodeContext, check_finite};

pub use allocate::{Choice, SHARED_SECTIONS, allocate, errors_by_sections};
pub use cache::{InputKey, InputMetrics, MetricCache};
pub use encode::Dictionary;
pub use experts::{DICTIONARY_ROWS, ExpertsCodec, spread};
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
    dictionary: Option<Arc<Dictionary>>,
}

impl SectionsCodec {
    /// Codec for inputs that are white or have the importance of the [`EncodeContext`].
    #[must_use]
    pub fn new(params: SectionsParams) -> Self {
        Self { params, metric: None, dictionary: None }
    }

    /// Codec for inputs with `metric`, which then takes the place of the context's importance.
    #[must_use]
    pub fn with_metric(self, metric: Arc<Metric>) -> Self {
        Self { metric: Some(metric), ..self }
    }

    /// Codec with a dictionary that is learned already, and stays as it is: several matrices may have the same.
    #[must_use]
    pub fn with_dictionary(self, dictionary: Arc<Dictionary>) -> Self {
        Self { dictionary: Some(dictionary), ..self }
    }

    /// The dictionary that fits best to `rows`, [d_in, n]: some of each matrix that is to have it.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn learn(
        &self,
        rows: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Dictionary, CodecError> {
        let metric = self.checked(rows, shape, context)?;
        self.fit(rows, shape, &metric, context).dictionary()
    }

    fn checked(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Arc<Metric>, CodecError> {
        self.params.check(shape)?;
        assert_eq!(weights.len(), shape.n_weights(), "weights do not fill {shape}");
        check_finite(weights, shape)?;
        self.metric(shape, context.importance)
    }

    fn fit<'a>(
        &'a self,
        weights: &'a [f32],
        shape: MatrixShape,
        metric: &'a Metric,
        context: &'a EncodeContext<'a>,
    ) -> encode::Fit<'a> {
        let dictionary = self.dictionary.as_deref();
        encode::Fit { params: &self.params, weights, shape, metric, dictionary, context }
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
        let metric = self.checked(weights, shape, context)?;
        self.fit(weights, shape, &metric, context).run()
    }

    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError> {
        Ok(SectionsParts::read(sidecars, shape)?.decode())
    }
}
