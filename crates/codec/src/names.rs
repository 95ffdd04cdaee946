//! Names of the FFN tensors in a GGUF: `blk.<layer>.ffn_<target>.<suffix>`.

use serde::{Deserialize, Serialize};

/// One of the three FFN matrices of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// `ffn_gate`: [n_embd, n_ff].
    Gate,
    /// `ffn_up`: [n_embd, n_ff].
    Up,
    /// `ffn_down`: [n_ff, n_embd].
    Down,
}

impl Target {
    /// All targets, in the order in which a layer uses them.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// `gate`, `up` or `down`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|t| t.as_str() == text)
            .ok_or_else(|| format!("unknown target '{text}': use gate, up or down"))
    }
}

/// A model of a million layers is none.
const MAX_LAYER_DIGITS: usize = 6;

/// The FFN matrix `target` of layer `layer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FfnTensor {
    /// Layer number, from 0.
    pub layer: usize,
    /// Which of the layer's matrices.
    pub target: Target,
}

impl FfnTensor {
    /// The FFN matrix that `name` (`blk.3.ffn_up.weight`, `blk.3.ffn_up.codes`) belongs to, and its suffix.
    ///
    /// `None` for every other tensor, including biases of other parts, MoE experts (`ffn_up_exps`,
    /// `ffn_up_shexp`) and layers that no model has, so that a layer's number can be counted with.
    #[must_use]
    pub fn parse(name: &str) -> Option<(Self, &str)> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (target, suffix) = rest.strip_prefix("ffn_")?.split_once('.')?;
        let is_number = layer.bytes().all(|b| b.is_ascii_digit());
        if layer.len() > MAX_LAYER_DIGITS || layer.len() > 1 && layer.starts_with('0') || !is_number
        {
            return None;
        }
        Some((Self { layer: layer.parse().ok()?, target: target.parse().ok()? }, suffix))
    }

    /// `blk.<layer>.ffn_<target>`, what the names of all its tensors start with.
    #[must_use]
    pub fn stem(self) -> String {
        format!("blk.{}.ffn_{}", self.layer, self.target)
    }

    /// Name of the dense weight.
    #[must_use]
    pub fn weight(self) -> String {
        self.with_suffix("weight")
    }

    /// Name of the tensor with `suffix`.
    #[must_use]
    pub fn with_suffix(self, suffix: &str) -> String {
        format!("{}.{suffix}", self.stem())
    }
}

impl std::fmt::Display for FfnTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for target in Target::ALL {
            let tensor = FfnTensor { layer: 12, target };
            assert_eq!(FfnTensor::parse(&tensor.weight()), Some((tensor, "weight")));
            assert_eq!(FfnTensor::parse(&tensor.with_suffix("codes")), Some((tensor, "codes")));
        }
    }

    #[test]
    fn other_tensors_are_not_ffn_matrices() {
        for name in [
            "output.weight",
            "blk.1.attn_q.weight",
            "blk.1.ffn_up_exps.weight",
            "blk.1.ffn_up_shexp.weight",
            "blk.1.ffn_norm.weight",
            "blk.01.ffn_up.weight",
            "blk.+1.ffn_up.weight",
            "blk..ffn_up.weight",
            "blk.99999999999999999999999.ffn_up.weight",
            "blk.1.ffn_up",
        ] {
            assert_eq!(FfnTensor::parse(name), None, "{name}");
        }
    }
}
