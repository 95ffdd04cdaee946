//! Parameters of a code, as plans and reports name them.

use std::collections::BTreeMap;

/// Parameters of the scheme for one matrix, such as `M` and `k`, by name.
pub type Settings = BTreeMap<String, u64>;

/// `M 256, k 16`.
#[must_use]
pub fn settings_text(settings: &Settings) -> String {
    let parts: Vec<String> =
        settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
    parts.join(", ")
}
