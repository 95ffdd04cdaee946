//! The parameters of a base as tensors, and the reader.

use half::f16;

use super::{
    BASE_BLOCK, BASE_CIRC, BASE_DIAG, BASE_SCALE, BASE_U, BASE_V, BaseSpec, BaseType, PartSpec,
    ROW_SCALE, Tiling,
};
use crate::{
    CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, f16_clamped, find_sidecar,
    finite_values,
};

/// A multiple of the identity: one value on all tiles of size 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The tiles.
    pub tiling: Tiling,
    /// The value.
    pub scale: f32,
}

/// Dense tiles; of size 1 a diagonal matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Where they lie.
    pub tiling: Tiling,
    /// [b, b, tiles]: input, output, tile.
    pub values: Vec<f32>,
}

/// `W0[r, i] = c[(r - i) mod n]`, n = max(d_in, d_out).
#[derive(Clone, Debug, PartialEq)]
pub struct Circulant {
    /// Shape of the matrix, the upper left corner of the n x n one.
    pub shape: MatrixShape,
    /// `[n]`, first column of the n x n matrix.
    pub column: Vec<f32>,
}

/// `W0[r, i] = sum_j u[r, j] v[j, i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Number of products in the sum.
    pub rank: usize,
    /// [rank, d_out]: the row of an output is contiguous.
    pub u: Vec<f32>,
    /// [d_in, rank]: row j is contiguous.
    pub v: Vec<f32>,
}

/// A part of a base with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A multiple of the identity.
    Identity(Identity),
    /// A diagonal matrix.
    Diagonal(Tiles),
    /// A product of two thin matrices.
    LowRank(LowRank),
    /// A matrix that is constant along wrapped diagonals.
    Circulant(Circulant),
    /// A block-diagonal matrix.
    Block(Tiles),
}

impl Part {
    /// What the part is, without its parameters.
    #[must_use]
    pub fn spec(&self) -> PartSpec {
        match self {
            Self::Identity(_) => PartSpec::Identity,
            Self::Diagonal(_) => PartSpec::Diagonal,
            Self::Block(tiles) => PartSpec::Block { size: tiles.tiling.size() },
            Self::Circulant(_) => PartSpec::Circulant,
            Self::LowRank(low) => PartSpec::LowRank { rank: low.rank },
        }
    }

    /// The parameters, tensor by tensor in file order.
    fn tensors(&self) -> Vec<&[f32]> {
        match self {
            Self::Identity(p) => vec![std::slice::from_ref(&p.scale)],
            Self::Diagonal(p) | Self::Block(p) => vec![&p.values],
            Self::Circulant(p) => vec![&p.column],
            Self::LowRank(p) => vec![&p.v, &p.u],
        }
    }

    /// Replaces the parameters by what they are after storing.
    pub fn round(&mut self, base_type: BaseType) {
        let tensors: [&mut [f32]; 2] = match self {
            Self::Identity(p) => [std::slice::from_mut(&mut p.scale), &mut []],
            Self::Diagonal(p) | Self::Block(p) => [&mut p.values, &mut []],
            Self::Circulant(p) => [&mut p.column, &mut []],
            Self::LowRank(p) => [&mut p.v, &mut p.u],
        };
        tensors.into_iter().flatten().for_each(|v| *v = base_type.round(*v));
    }

    fn to_sidecars(
        &self,
        shape: MatrixShape,
        base_type: BaseType,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let specs = self.spec().specs(shape, base_type)?;
        let store = |(spec, values): (&SidecarSpec, &[f32])| match base_type {
            BaseType::F32 => Sidecar::from_f32(spec.suffix, &spec.dims, values),
            BaseType::F16 => {
                let values: Vec<f16> = values.iter().map(|&v| f16_clamped(v)).collect();
                Sidecar::from_f16(spec.suffix, &spec.dims, &values)
            }
        };
        Ok(specs.iter().zip(self.tensors()).map(store).collect())
    }

    /// All parts whose tensors are among `sidecars`, in the order of these, and their storage type.
    fn read_all(
        sidecars: &[Sidecar],
        shape: MatrixShape,
    ) -> Result<(Vec<Self>, BaseType), CodecError> {
        let mut parts: Vec<(usize, Self)> = Vec::new();
        let mut base_type = BaseType::default();
        for (suffix, size_dim) in [
            (BASE_SCALE, None),
            (BASE_DIAG, None),
            (BASE_V, Some(1)),
            (BASE_CIRC, None),
            (BASE_BLOCK, Some(0)),
        ] {
            let Some(first) = find_sidecar(sidecars, suffix) else { continue };
            let size =
                size_dim.map_or(0, |dim: usize| first.spec.dims.get(dim).copied().unwrap_or(1));
            base_type = match first.spec.element_type {
                ElementType::F16 => BaseType::F16,
                ElementType::F32 => BaseType::F32,
                other => {
                    let reason = format!("type is {other:?}, must be F16 or F32");
                    return Err(CodecError::Sidecar { suffix, reason });
                }
            };
            let position = sidecars.iter().position(|s| s.spec.suffix == suffix).unwrap_or(0);
            parts.push((position, Self::read(suffix, size, sidecars, shape, base_type)?));
        }
        if find_sidecar(sidecars, BASE_U).is_some() && find_sidecar(sidecars, BASE_V).is_none() {
            let reason = format!("missing, though '{BASE_U}' is there");
            return Err(CodecError::Sidecar { suffix: BASE_V, reason });
        }
        parts.sort_by_key(|&(position, _)| position);
        Ok((parts.into_iter().map(|(_, part)| part).collect(), base_type))
    }

    /// The part whose first tensor is `suffix`; `size` is its rank or block size.
    fn read(
        suffix: &'static str,
        size: usize,
        sidecars: &[Sidecar],
        shape: MatrixShape,
        base_type: BaseType,
    ) -> Result<Self, CodecError> {
        let spec = match suffix {
            BASE_SCALE => PartSpec::Identity,
            BASE_DIAG => PartSpec::Diagonal,
            BASE_V => PartSpec::LowRank { rank: size },
            BASE_CIRC => PartSpec::Circulant,
            _ => PartSpec::Block { size },
        };
        let bad_shape = |_| {
            let reason = format!("does not fit a matrix of {shape} (inputs x outputs)");
            CodecError::Sidecar { suffix, reason }
        };
        let specs = spec.specs(shape, base_type).map_err(bad_shape)?;
        let mut tensors = Vec::new();
        for spec in &specs {
            tensors.push(finite_values(sidecars, spec)?);
        }
        let mut next = || tensors.remove(0);
        Ok(match spec {
            PartSpec::Identity => {
                Self::Identity(Identity { tiling: Tiling::new(shape, 1), scale: next()[0] })
            }
            PartSpec::Diagonal => {
                Self::Diagonal(Tiles { tiling: Tiling::new(shape, 1), values: next() })
            }
            PartSpec::Block { size } => {
                Self::Block(Tiles { tiling: Tiling::new(shape, size), values: next() })
            }
            PartSpec::Circulant => Self::Circulant(Circulant { shape, column: next() }),
            PartSpec::LowRank { rank } => Self::LowRank(LowRank { rank, v: next(), u: next() }),
        })
    }
}

/// `diag(row_scale) * W0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// Shape of the matrix.
    pub shape: MatrixShape,
    /// Storage of the parameters.
    pub base_type: BaseType,
    /// The parts that W0 is the sum of, in file order; none for 0.
    pub parts: Vec<Part>,
    /// `[d_out]`, 1 if absent.
    pub row_scale: Option<Vec<f32>>,
}

impl Base {
    /// What the base is, without its parameters.
    #[must_use]
    pub fn spec(&self) -> BaseSpec {
        BaseSpec::of(self.parts.iter().map(Part::spec).collect())
    }

    /// The base's tensors; none without parts and row scale.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if a part does not fit the shape.
    pub fn to_sidecars(&self) -> Result<Vec<Sidecar>, CodecError> {
        let mut sidecars = Vec::new();
        for part in &self.parts {
            sidecars.extend(part.to_sidecars(self.shape, self.base_type)?);
        }
        if let Some(scale) = &self.row_scale {
            let values: Vec<f16> = scale.iter().map(|&g| f16_clamped(g)).collect();
            sidecars.push(Sidecar::from_f16(ROW_SCALE, &[self.shape.d_out], &values));
        }
        Ok(sidecars)
    }

    /// Reads the tensors of a base, which may come from an untrusted file: types, shapes, sizes and the finiteness of
    /// values are checked. Which parts there are follows from the tensors.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] naming the tensor.
    pub fn read(sidecars: &[Sidecar], shape: MatrixShape) -> Result<Self, CodecError> {
        if shape.checked_n_weights().is_none_or(|n| n == 0) {
            let reason = format!("a matrix of {shape} has no weights, or too many");
            return Err(CodecError::Sidecar { suffix: "base", reason });
        }
        let (parts, base_type) = Part::read_all(sidecars, shape)?;
        let row_scale = match find_sidecar(sidecars, ROW_SCALE) {
            None => None,
            Some(_) => Some(finite_values(sidecars, &row_scale_spec(shape))?),
        };
        Ok(Self { shape, base_type, parts, row_scale })
    }
}

/// Spec of the row scale's tensor.
#[must_use]
pub fn row_scale_spec(shape: MatrixShape) -> SidecarSpec {
    SidecarSpec::new(ROW_SCALE, ElementType::F16, &[shape.d_out])
}
