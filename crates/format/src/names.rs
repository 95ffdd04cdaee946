//! Names of matrices and of their inputs: `blk.<layer>.<part>.<suffix>`.

use std::fmt;

use crate::{InputRole, Role};

/// A model of a million layers is none.
const MAX_LAYER_DIGITS: usize = 6;

/// The matrix that plays `role` in layer `layer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MatrixId {
    /// Layer number, from 0.
    pub layer: usize,
    /// What the matrix does in the layer.
    #[cfg_attr(feature = "serde", serde(rename = "target"))]
    pub role: Role,
}

impl MatrixId {
    /// The matrix that `name` (`blk.3.ffn_up.weight`, `blk.3.ffn_up.codes`) belongs to, and its suffix.
    ///
    /// `None` for every other tensor, including biases of other parts and layers that no model has, so that a layer's number can be counted with.
    #[must_use]
    pub fn parse(name: &str) -> Option<(Self, &str)> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, suffix) = rest.split_once('.')?;
        let is_number = layer.bytes().all(|b| b.is_ascii_digit());
        if layer.len() > MAX_LAYER_DIGITS || layer.len() > 1 && layer.starts_with('0') || !is_number
        {
            return None;
        }
        Some((Self { layer: layer.parse().ok()?, role: Role::of_part(part)? }, suffix))
    }

    /// The matrix whose dense weight is called `name`, as [`Self::weight`] makes it.
    #[must_use]
    pub fn of_weight(name: &str) -> Option<Self> {
        Self::parse(name).and_then(|(matrix, suffix)| (suffix == "weight").then_some(matrix))
    }

    /// The matrix of the stem `blk.<layer>.<part>`, as [`Self::stem`] makes it.
    #[must_use]
    pub fn of_stem(stem: &str) -> Option<Self> {
        Self::of_weight(&format!("{stem}.weight"))
    }

    /// The input that the matrix is multiplied with.
    #[must_use]
    pub fn input(self) -> InputId {
        InputId { layer: self.layer, role: self.role.input() }
    }

    /// `blk.<layer>.<part>`, what the names of all its tensors start with.
    #[must_use]
    pub fn stem(self) -> String {
        format!("blk.{}.{}", self.layer, self.role.part())
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

impl fmt::Display for MatrixId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stem())
    }
}

/// An input that matrices of layer `layer` are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputId {
    /// Layer number, from 0.
    pub layer: usize,
    /// Which of the layer's inputs.
    pub role: InputRole,
}

impl InputId {
    /// The matrices that may read it; not every model has all of them.
    pub fn readers(self) -> impl Iterator<Item = MatrixId> {
        self.role.readers().map(move |role| MatrixId { layer: self.layer, role })
    }

    /// `blk.<layer>.<part>`, what the names of its tensors in a calibration start with.
    #[must_use]
    pub fn stem(self) -> String {
        format!("blk.{}.{}", self.layer, self.role.part())
    }
}

impl fmt::Display for InputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for role in Role::ALL {
            let tensor = MatrixId { layer: 12, role };
            assert_eq!(MatrixId::parse(&tensor.weight()), Some((tensor, "weight")));
            assert_eq!(MatrixId::parse(&tensor.with_suffix("codes")), Some((tensor, "codes")));
            assert_eq!(MatrixId::of_weight(&tensor.weight()), Some(tensor));
            assert_eq!(MatrixId::of_weight(&tensor.with_suffix("codes")), None);
        }
    }

    #[test]
    fn other_tensors_are_not_ffn_matrices() {
        for name in [
            "output.weight",
            "blk.1.attn_q.weight",
            "blk.1.ffn_up_chexps.weight",
            "blk.1.ffn_norm.weight",
            "blk.01.ffn_up.weight",
            "blk.+1.ffn_up.weight",
            "blk..ffn_up.weight",
            "blk.99999999999999999999999.ffn_up.weight",
            "blk.1.ffn_up",
        ] {
            assert_eq!(MatrixId::parse(name), None, "{name}");
        }
    }
}
