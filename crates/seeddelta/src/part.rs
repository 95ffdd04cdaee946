//! One part of a base, whatever its kind: fitting and decoding.

use format::seeddelta::{Part, PartSpec};
use format::{CodecError, MatrixShape};

use crate::weights::Weights;
use crate::{circulant, lowrank, tiles};

/// The nearest member of `spec`'s space to `wanted` [d_in, d_out].
pub(crate) fn fit(
    spec: PartSpec,
    wanted: &[f32],
    shape: MatrixShape,
    weights: &Weights<'_>,
) -> Result<Part, CodecError> {
    Ok(match spec {
        PartSpec::Identity => Part::Identity(tiles::fit_identity(wanted, shape, weights)),
        PartSpec::Diagonal => Part::Diagonal(tiles::fit(wanted, shape, 1, weights)),
        PartSpec::Block { size } => Part::Block(tiles::fit(wanted, shape, size, weights)),
        PartSpec::Circulant => Part::Circulant(circulant::fit(wanted, shape, weights)),
        PartSpec::LowRank { rank } => {
            let fitted = lowrank::fit(wanted, shape, rank, weights).map_err(|_| {
                spec.refuse(shape, "the singular value decomposition did not converge")
            })?;
            Part::LowRank(fitted)
        }
    })
}

/// `out += gain * W0[row, ..]`, `[d_in]`.
pub(crate) fn add_row(part: &Part, row: usize, gain: f32, out: &mut [f32]) {
    match part {
        Part::Identity(p) => {
            p.tiling.for_row(row, |columns, _| out[columns.start] += gain * p.scale);
        }
        Part::Diagonal(p) | Part::Block(p) => p.tiling.for_row(row, |columns, start| {
            let values = &p.values[start..][..columns.len()];
            for (out, value) in out[columns].iter_mut().zip(values) {
                *out += gain * value;
            }
        }),
        Part::Circulant(p) => {
            let n = p.column.len();
            for (i, out) in out.iter_mut().enumerate() {
                *out += gain * p.column[(row + n - i) % n];
            }
        }
        Part::LowRank(p) => {
            let u = &p.u[row * p.rank..][..p.rank];
            for (u, v) in u.iter().zip(p.v.chunks(out.len())) {
                let factor = gain * u;
                out.iter_mut().zip(v).for_each(|(out, v)| *out += factor * v);
            }
        }
    }
}
