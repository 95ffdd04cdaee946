//! What is known about a tensor once it is finished.

use format::{ElementType, SidecarSpec};
use numerics::metrics::Metrics;
use serde::{Deserialize, Serialize};

use crate::{FfnTuningReport, FunctionalMetrics, TuningOutcome, TuningReport};

/// A finished tensor without its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorResult {
    /// Scheme of the sidecars, `None` if the dense weight stays.
    pub scheme: Option<String>,
    /// Gap that decided and is recorded: on held-out activations if there is a calibration, weighted if
    /// there is an imatrix, else white.
    pub gap: f32,
    /// Errors against the source; `None` for a dense tensor taken over from an earlier output, which
    /// records the gap only.
    pub metrics: Option<ErrorMetrics>,
    /// Seconds of learning, encoding and measuring.
    pub seconds: f64,
    /// Type and dimensions of the sidecars, in file order; empty if the dense weight stays.
    pub sidecars: Vec<StoredSpec>,
    /// SHA-256 over the data of all sidecars, in file order.
    pub sidecars_sha256: String,
    /// Inputs to fit to that each expert has seen; empty where that is not kept.
    #[serde(default)]
    pub expert_inputs: Vec<u64>,
    /// What tuning brought, if the tensor has been tuned together with the others of its FFN.
    #[serde(default)]
    pub ffn_tuned: Option<FfnTuningReport>,
    /// What tuning brought, if the tensor has been tuned together with all others.
    #[serde(default)]
    pub tuned: Option<TuningReport>,
}

impl TensorResult {
    /// A tensor of an earlier output whose dense weight stays because of `gap`.
    #[must_use]
    pub fn dense(gap: f32) -> Self {
        Self {
            scheme: None,
            gap,
            metrics: None,
            seconds: 0.0,
            sidecars: Vec::new(),
            sidecars_sha256: String::new(),
            expert_inputs: Vec::new(),
            ffn_tuned: None,
            tuned: None,
        }
    }

    /// Takes down what a step of tuning brought.
    pub(crate) fn take_down(&mut self, outcome: TuningOutcome) {
        match outcome {
            TuningOutcome::Ffn(report) => self.ffn_tuned = Some(report),
            TuningOutcome::Whole(report) => self.tuned = Some(report),
        }
    }
}

/// Errors in every metric that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorMetrics {
    /// For white inputs.
    #[serde(with = "exact")]
    pub white: Metrics,
    /// For inputs with the mean squares of the imatrix or the calibration.
    #[serde(with = "exact_option")]
    pub weighted: Option<Metrics>,
    /// Gap measured on random inputs (`--eval-cols`).
    #[serde(with = "exact_gap")]
    pub eval_gap: Option<f64>,
    /// On the activations of a calibration.
    #[serde(default)]
    pub functional: Option<FunctionalMetrics>,
}

impl ErrorMetrics {
    /// The gap that is recorded: of all metrics the one that says most about the model's outputs.
    #[must_use]
    pub fn gap(&self) -> f64 {
        match (&self.functional, &self.weighted) {
            (Some(functional), _) => functional.coded.held_out.sqrt(),
            (None, Some(weighted)) => weighted.gap,
            (None, None) => self.white.gap,
        }
    }
}

/// [`SidecarSpec`] as stored: its suffix is checked against the codec's own when it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSpec {
    /// Last part of the tensor name.
    pub suffix: String,
    /// Element type.
    pub element_type: ElementType,
    /// Dimensions, innermost first.
    pub dims: Vec<usize>,
}

impl From<&SidecarSpec> for StoredSpec {
    fn from(spec: &SidecarSpec) -> Self {
        Self {
            suffix: spec.suffix.to_owned(),
            element_type: spec.element_type,
            dims: spec.dims.clone(),
        }
    }
}

impl PartialEq<SidecarSpec> for StoredSpec {
    fn eq(&self, spec: &SidecarSpec) -> bool {
        self.suffix == spec.suffix
            && self.element_type == spec.element_type
            && self.dims == spec.dims
    }
}

/// Floats as the hexadecimal form of their bits: JSON has no infinity and rounds, but a resumed
/// build must write the same bytes as an uninterrupted one.
mod exact {
    use numerics::metrics::Metrics;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn to_text(metrics: &Metrics) -> String {
        let m = metrics;
        let fields = [m.gap, m.rel_error, m.cos_mean, m.cos_p05, m.error_energy, m.weight_energy];
        fields.map(|f| format!("{:016x}", f.to_bits())).join(" ")
    }

    pub(super) fn from_text(text: &str) -> Option<Metrics> {
        let fields: Result<Vec<u64>, _> =
            text.split(' ').map(|f| u64::from_str_radix(f, 16)).collect();
        let fields: [u64; 6] = fields.ok()?.try_into().ok()?;
        let [gap, rel_error, cos_mean, cos_p05, error_energy, weight_energy] =
            fields.map(f64::from_bits);
        Some(Metrics { gap, rel_error, cos_mean, cos_p05, error_energy, weight_energy })
    }

    pub(super) fn serialize<S: Serializer>(m: &Metrics, s: S) -> Result<S::Ok, S::Error> {
        to_text(m).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Metrics, D::Error> {
        from_text(&String::deserialize(d)?).ok_or_else(|| D::Error::custom("not six floats"))
    }
}

/// [`exact`] for metrics that may be missing.
mod exact_option {
    use numerics::metrics::Metrics;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde prescribes the signature")]
    pub(super) fn serialize<S: Serializer>(m: &Option<Metrics>, s: S) -> Result<S::Ok, S::Error> {
        m.as_ref().map(super::exact::to_text).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Metrics>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| super::exact::from_text(&t).ok_or_else(|| D::Error::custom("not six floats")))
            .transpose()
    }
}

/// [`exact`] for one float that may be missing.
mod exact_gap {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde prescribes the signature")]
    pub(super) fn serialize<S: Serializer>(gap: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        gap.map(|g| format!("{:016x}", g.to_bits())).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| u64::from_str_radix(&t, 16).map(f64::from_bits).map_err(D::Error::custom))
            .transpose()
    }
}
