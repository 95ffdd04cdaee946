//! One part of a base, whatever its kind: fitting, storing, reading, applying.

use codec::coo::checked_sidecar;
use codec::{CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, find_sidecar};
use half::f16;

use crate::circulant::Circulant;
use crate::fit::Weights;
use crate::lowrank::LowRank;
use crate::tiles::{Identity, Tiles, Tiling};
use crate::{BaseType, PartSpec};

/// A fitted part.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Identity(Identity),
    Diagonal(Tiles),
    LowRank(LowRank),
    Circulant(Circulant),
    Block(Tiles),
}

impl Part {
    /// The nearest member of `spec`'s space to `target` [d_in, d_out].
    pub(crate) fn fit(
        spec: PartSpec,
        target: &[f32],
        shape: MatrixShape,
        weights: &Weights<'_>,
    ) -> Result<Self, CodecError> {
        Ok(match spec {
            PartSpec::Identity => Self::Identity(Identity::fit(target, shape, weights)),
            PartSpec::Diagonal => Self::Diagonal(Tiles::fit(target, shape, 1, weights)),
            PartSpec::Block { size } => Self::Block(Tiles::fit(target, shape, size, weights)),
            PartSpec::Circulant => Self::Circulant(Circulant::fit(target, shape, weights)),
            PartSpec::LowRank { rank } => {
                let fitted = LowRank::fit(target, shape, rank, weights).map_err(|_| {
                    spec.refuse(shape, "the singular value decomposition did not converge")
                })?;
                Self::LowRank(fitted)
            }
        })
    }

    pub(crate) fn spec(&self) -> PartSpec {
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
    pub(crate) fn round(&mut self, base_type: BaseType) {
        let tensors: [&mut [f32]; 2] = match self {
            Self::Identity(p) => [std::slice::from_mut(&mut p.scale), &mut []],
            Self::Diagonal(p) | Self::Block(p) => [&mut p.values, &mut []],
            Self::Circulant(p) => [&mut p.column, &mut []],
            Self::LowRank(p) => [&mut p.v, &mut p.u],
        };
        tensors.into_iter().flatten().for_each(|v| *v = base_type.round(*v));
    }

    /// `out += gain * W0[row, ..]`, `[d_in]`.
    pub(crate) fn add_row(&self, row: usize, gain: f32, out: &mut [f32]) {
        match self {
            Self::Identity(p) => p.add_row(row, gain, out),
            Self::Diagonal(p) | Self::Block(p) => p.add_row(row, gain, out),
            Self::Circulant(p) => p.add_row(row, gain, out),
            Self::LowRank(p) => p.add_row(row, gain, out),
        }
    }

    pub(crate) fn to_sidecars(
        &self,
        shape: MatrixShape,
        base_type: BaseType,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let specs = self.spec().specs(shape, base_type)?;
        let store = |(spec, values): (&SidecarSpec, &[f32])| match base_type {
            BaseType::F32 => Sidecar::from_f32(spec.suffix, &spec.dims, values),
            BaseType::F16 => {
                let values: Vec<f16> = values.iter().map(|&v| codec::coo::f16_clamped(v)).collect();
                Sidecar::from_f16(spec.suffix, &spec.dims, &values)
            }
        };
        Ok(specs.iter().zip(self.tensors()).map(store).collect())
    }

    /// All parts whose tensors are among `sidecars`, in the order of these, and their storage type.
    pub(crate) fn read_all(
        sidecars: &[Sidecar],
        shape: MatrixShape,
    ) -> Result<(Vec<Self>, BaseType), CodecError> {
        let mut parts: Vec<(usize, Self)> = Vec::new();
        let mut base_type = BaseType::default();
        for (suffix, size_dim) in [
            ("base_scale", None),
            ("base_diag", None),
            ("base_v", Some(1)),
            ("base_circ", None),
            ("base_block", Some(0)),
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
        if find_sidecar(sidecars, "base_u").is_some() && find_sidecar(sidecars, "base_v").is_none()
        {
            let reason = String::from("missing, though 'base_u' is there");
            return Err(CodecError::Sidecar { suffix: "base_v", reason });
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
            "base_scale" => PartSpec::Identity,
            "base_diag" => PartSpec::Diagonal,
            "base_v" => PartSpec::LowRank { rank: size },
            "base_circ" => PartSpec::Circulant,
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

/// The values of the F16 or F32 tensor `spec`, checked.
pub(crate) fn finite_values(
    sidecars: &[Sidecar],
    spec: &SidecarSpec,
) -> Result<Vec<f32>, CodecError> {
    let values = checked_sidecar(sidecars, spec)?.to_floats().unwrap_or_default();
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => {
            let reason = format!("value {i} is {}", values[i]);
            Err(CodecError::Sidecar { suffix: spec.suffix, reason })
        }
    }
}
