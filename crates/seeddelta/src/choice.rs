//! What is chosen for one tensor.

use format::seeddelta::BaseSpec;
use serde::Deserialize;

/// Parameters of one tensor that may differ from the others', an entry of a policy file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The base.
    pub base: BaseSpec,
    /// Residuals per row, 0 for none.
    pub delta_k: usize,
}
