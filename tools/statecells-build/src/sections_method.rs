//! The scheme `sections` as the builder sees it.

use std::collections::BTreeMap;

use builder::{Method, PlanItem, Settings};
use codec::{Codec, CodecError, EncodeContext, FfnTensor, MatrixShape, Sidecar, SidecarSpec};
use ggml::gguf::Value;
use statecells::Scheme;
use statecells::sections::{SectionsCodec, SectionsParams};

/// Sections with the same parameters for every tensor.
#[derive(Debug)]
pub struct SectionsMethod {
    params: SectionsParams,
}

impl SectionsMethod {
    /// The method with `params` for every tensor.
    #[must_use]
    pub fn new(params: SectionsParams) -> Self {
        Self { params }
    }
}

impl Method for SectionsMethod {
    fn scheme(&self) -> &'static str {
        Scheme::Sections.as_str()
    }

    fn codec(&self, _tensor: FfnTensor) -> Box<dyn Codec> {
        Box::new(SectionsCodec::new(self.params.clone()))
    }

    fn settings(&self, _tensor: FfnTensor, shape: MatrixShape) -> Settings {
        let mut settings = Settings::from([("S".to_owned(), self.params.sections as u64)]);
        if self.params.outlier_share > 0.0 {
            settings.insert("exact".to_owned(), self.params.n_outliers(shape) as u64);
        }
        settings
    }

    fn arguments(&self) -> BTreeMap<String, String> {
        let params = &self.params;
        [
            ("--scheme", self.scheme().to_owned()),
            ("--S", params.sections.to_string()),
            ("--beam", params.beam.to_string()),
            ("--rounds", params.rounds.to_string()),
            ("--outliers", params.outlier_share.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Never called: no file of other parameters grows into one of these.
    fn complete(
        &self,
        _tensor: FfnTensor,
        _weights: &[f32],
        _shape: MatrixShape,
        _sidecars: Vec<Sidecar>,
        _context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let reason = "a file of another scheme cannot grow into sections".to_owned();
        Err(CodecError::Sidecar { suffix: "codes", reason })
    }

    fn earlier_sidecars(&self, _item: &PlanItem, _recorded: &str) -> Option<Vec<SidecarSpec>> {
        None
    }

    fn metadata(&self, _coded: &[&PlanItem]) -> Vec<(String, Value)> {
        Vec::new()
    }
}
