//! What the user asks for: the base and how its parameters are stored.

use std::fmt;
use std::str::FromStr;

use super::{BASE_BLOCK, BASE_CIRC, BASE_DIAG, BASE_SCALE, BASE_U, BASE_V, Tiling};
use crate::{CodecError, ElementType, MatrixShape, SidecarSpec, f16_clamped};

/// A word on the command line that names no base or type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// Element type of the base's tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum BaseType {
    /// 16-bit float; values beyond its range are clamped.
    #[default]
    F16,
    /// 32-bit float.
    F32,
}

impl BaseType {
    /// Element type of the tensors.
    #[must_use]
    pub fn element_type(self) -> ElementType {
        match self {
            Self::F16 => ElementType::F16,
            Self::F32 => ElementType::F32,
        }
    }

    /// `value` as it is after storing.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F16 => f16_clamped(value).to_f32(),
            Self::F32 => value,
        }
    }
}

impl fmt::Display for BaseType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        })
    }
}

impl FromStr for BaseType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            _ => Err(ParseError(format!("unknown storage type '{text}': use f16 or f32"))),
        }
    }
}

/// One structured part of a base, see the crate that fits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartSpec {
    /// A multiple of the identity.
    Identity,
    /// A diagonal matrix.
    Diagonal,
    /// A product of two thin matrices.
    LowRank {
        /// Number of columns of the first and rows of the second, at least 1.
        rank: usize,
    },
    /// A matrix that is constant along wrapped diagonals.
    Circulant,
    /// A block-diagonal matrix.
    Block {
        /// Rows and columns of a block, at least 1.
        size: usize,
    },
}

impl PartSpec {
    /// Tensors of this part for a matrix of `shape`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if the part does not fit the shape.
    pub fn specs(
        self,
        shape: MatrixShape,
        base_type: BaseType,
    ) -> Result<Vec<SidecarSpec>, CodecError> {
        let MatrixShape { d_in, d_out } = shape;
        let n = d_in.max(d_out);
        if d_in == 0 || d_out == 0 {
            return Err(self.refuse(shape, "the matrix is empty"));
        }
        let spec =
            |suffix, dims: &[usize]| SidecarSpec::new(suffix, base_type.element_type(), dims);
        Ok(match self {
            Self::Identity => vec![spec(BASE_SCALE, &[1])],
            Self::Diagonal => vec![spec(BASE_DIAG, &[n])],
            Self::Circulant => vec![spec(BASE_CIRC, &[n])],
            Self::LowRank { rank } if rank == 0 || rank > d_in.min(d_out) => {
                return Err(self.refuse(shape, format!("use a rank from 1 to {}", d_in.min(d_out))));
            }
            Self::LowRank { rank } => {
                vec![spec(BASE_V, &[d_in, rank]), spec(BASE_U, &[rank, d_out])]
            }
            Self::Block { size } if size == 0 || size > n => {
                return Err(self.refuse(shape, format!("use a block size from 1 to {n}")));
            }
            Self::Block { size } => {
                vec![spec(BASE_BLOCK, &[size, size, Tiling::new(shape, size).n_tiles()])]
            }
        })
    }

    /// The error for a part that does not fit `shape`.
    #[must_use]
    pub fn refuse(self, shape: MatrixShape, reason: impl Into<String>) -> CodecError {
        CodecError::Parameter {
            name: "--base",
            value: self.to_string(),
            shape,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for PartSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Diagonal => f.write_str("diagonal"),
            Self::LowRank { rank } => write!(f, "lowrank:{rank}"),
            Self::Circulant => f.write_str("circulant"),
            Self::Block { size } => write!(f, "block:{size}"),
        }
    }
}

impl FromStr for PartSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let positive = |what| {
            number.and_then(|n| n.parse().ok()).filter(|&n| n > 0).ok_or_else(|| {
                ParseError(format!("base '{text}': give the {what}, as in '{name}:8'"))
            })
        };
        let part = match name {
            "lowrank" => return Ok(Self::LowRank { rank: positive("rank")? }),
            "block" => return Ok(Self::Block { size: positive("block size")? }),
            "identity" => Self::Identity,
            "diagonal" => Self::Diagonal,
            "circulant" => Self::Circulant,
            _ => {
                return Err(ParseError(format!(
                    "unknown base '{text}': use none, identity, diagonal, lowrank:R, circulant, \
                     block:B or a sum of two such as lowrank:8+diagonal"
                )));
            }
        };
        match number {
            None => Ok(part),
            Some(_) => Err(ParseError(format!("base '{text}': {name} takes no number"))),
        }
    }
}

/// A base: nothing, one part or the sum of two parts of different kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct BaseSpec {
    parts: Vec<PartSpec>,
}

impl BaseSpec {
    /// The base that is zero.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Base of one part.
    #[must_use]
    pub fn one(part: PartSpec) -> Self {
        Self { parts: vec![part] }
    }

    /// The sum of `parts`.
    pub(super) fn of(parts: Vec<PartSpec>) -> Self {
        Self { parts }
    }

    /// The parts, in the order in which they are fitted.
    #[must_use]
    pub fn parts(&self) -> &[PartSpec] {
        &self.parts
    }

    /// Tensors of the base for a matrix of `shape`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if a part does not fit the shape.
    pub fn specs(
        &self,
        shape: MatrixShape,
        base_type: BaseType,
    ) -> Result<Vec<SidecarSpec>, CodecError> {
        let mut specs = Vec::new();
        for part in &self.parts {
            specs.extend(part.specs(shape, base_type)?);
        }
        Ok(specs)
    }
}

impl fmt::Display for BaseSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts.as_slice() {
            [] => f.write_str("none"),
            [part] => part.fmt(f),
            [first, rest @ ..] => {
                first.fmt(f)?;
                rest.iter().try_for_each(|part| write!(f, "+{part}"))
            }
        }
    }
}

impl FromStr for BaseSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "none" {
            return Ok(Self::none());
        }
        let parts: Vec<PartSpec> = text.split('+').map(str::parse).collect::<Result<_, _>>()?;
        match parts.as_slice() {
            [_] => Ok(Self { parts }),
            // Two parts of one kind would share tensor names, and are one larger part anyway.
            [a, b] if std::mem::discriminant(a) != std::mem::discriminant(b) => Ok(Self { parts }),
            [_, _] => Err(ParseError(format!("base '{text}': add two different kinds"))),
            _ => Err(ParseError(format!("base '{text}': at most two parts can be added"))),
        }
    }
}

impl TryFrom<String> for BaseSpec {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<BaseSpec> for String {
    fn from(spec: BaseSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_print_as_they_are_written() {
        for text in [
            "none",
            "identity",
            "diagonal",
            "lowrank:8",
            "circulant",
            "block:16",
            "lowrank:8+diagonal",
        ] {
            let spec: BaseSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_base_is_refused_with_a_way_out() {
        let message = |text: &str| text.parse::<BaseSpec>().unwrap_err().to_string();
        assert!(message("toeplitz").contains("use none, identity"));
        assert!(message("lowrank").contains("'lowrank:8'"));
        assert!(message("lowrank:0").contains("give the rank"));
        assert!(message("lowrank:-1").contains("give the rank"));
        assert!(message("block:x").contains("give the block size"));
        assert!(message("diagonal:3").contains("takes no number"));
        assert!(message("none+diagonal").contains("unknown base 'none'"));
        assert!(message("lowrank:2+lowrank:3").contains("two different kinds"));
        assert!(message("identity+diagonal+circulant").contains("at most two"));
        assert!(message("").contains("unknown base ''"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let shape = MatrixShape::new(6, 4);
        let refused = |text: &str| {
            let spec: BaseSpec = text.parse().unwrap();
            spec.specs(shape, BaseType::F16).unwrap_err().to_string()
        };
        assert!(refused("lowrank:5").contains("use a rank from 1 to 4"));
        assert!(refused("block:7").contains("use a block size from 1 to 6"));
    }
}
