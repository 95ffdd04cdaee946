//! The stored form of a global dictionary: names, checks and the reader.

use codec::{CodecError, MatrixShape, Sidecar, find_sidecar};
use rayon::prelude::*;

/// Suffix of the atoms, [d_in, M] F16 or F32; atom j is one contiguous vector.
pub const DICT: &str = "dict";
/// Suffix of the codes, [k, d_out] I16: +-(atom + 1), 0 is an empty slot.
pub const CODES: &str = "codes";
/// Suffix of the optional coefficients, [k, d_out] F16: coefficient = sign(code) * val.
pub const VALS: &str = "vals";
/// Suffix of the optional row scales, `[d_out]` F16.
pub const ROW_SCALE: &str = "row_scale";

/// A global dictionary and its codes, read from sidecars and checked.
#[derive(Clone, Debug)]
pub struct GlobalParts {
    /// Number of atoms M.
    pub m: usize,
    /// Slots per row.
    pub k: usize,
    /// Atoms, [d_in, M].
    pub atoms: Vec<f32>,
    /// Codes, [k, d_out]; every one is 0 or +-(atom + 1) with atom < M.
    pub codes: Vec<i16>,
    /// Coefficients, [k, d_out].
    pub vals: Option<Vec<f32>>,
    /// Row scales, `[d_out]`.
    pub row_scale: Option<Vec<f32>>,
}

impl GlobalParts {
    /// Reads and checks `sidecars` of a matrix of `shape`.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if a tensor is missing, has another type or shape, or holds a code out of
    /// range or a number that is not finite.
    pub fn read(sidecars: &[Sidecar], shape: MatrixShape) -> Result<Self, CodecError> {
        if shape.d_in == 0 || shape.checked_n_weights().is_none() {
            return Err(malformed(DICT, format!("belongs to an impossible matrix of {shape}")));
        }
        let dict = required(sidecars, DICT)?;
        let m = second_dim(dict, shape.d_in, super::MAX_ATOMS)?;
        let codes = required(sidecars, CODES)?;
        let &[k, _] = codes.spec.dims.as_slice() else {
            return Err(malformed(CODES, format!("has dimensions {:?}", codes.spec.dims)));
        };
        expect_dims(codes, &[k, shape.d_out])?;
        let atoms = finite_floats(dict)?;
        let codes = codes.to_i16().ok_or_else(|| malformed(CODES, "is not I16".to_owned()))?;
        if let Some(i) = codes.par_iter().position_first(|c| usize::from(c.unsigned_abs()) > m) {
            let reason = format!("code {} of row {} is outside +-{m}", codes[i], i / k.max(1));
            return Err(malformed(CODES, reason));
        }
        let vals = optional_floats(sidecars, VALS, &[k, shape.d_out])?;
        let row_scale = optional_floats(sidecars, ROW_SCALE, &[shape.d_out])?;
        Ok(Self { m, k, atoms, codes, vals, row_scale })
    }

    /// Writes the sum of atoms that row `row` stands for, without the row scale, to `out`, `[d_in]`.
    pub fn sum_atoms(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        let slots = row * self.k..(row + 1) * self.k;
        for slot in slots {
            let code = self.codes[slot];
            if code == 0 {
                continue;
            }
            let val = self.vals.as_ref().map_or(1.0, |v| v[slot]);
            let coefficient = if code < 0 { -val } else { val };
            let atom = usize::from(code.unsigned_abs()) - 1;
            let atom = &self.atoms[atom * out.len()..(atom + 1) * out.len()];
            for (out, a) in out.iter_mut().zip(atom) {
                *out += coefficient * a;
            }
        }
    }

    /// The dense matrix [d_in, d_out].
    #[must_use]
    pub fn decode(&self, shape: MatrixShape) -> Vec<f32> {
        let mut dense = vec![0.0; shape.n_weights()];
        dense.par_chunks_mut(shape.d_in).enumerate().for_each(|(row, out)| {
            self.sum_atoms(row, out);
            if let Some(scale) = &self.row_scale {
                out.iter_mut().for_each(|v| *v *= scale[row]);
            }
        });
        dense
    }
}

/// The error for a tensor that is not what the format says.
pub(crate) fn malformed(suffix: &'static str, reason: String) -> CodecError {
    CodecError::Sidecar { suffix, reason }
}

/// The sidecar `suffix`, with as much data as its own shape asks for.
fn required<'a>(sidecars: &'a [Sidecar], suffix: &'static str) -> Result<&'a Sidecar, CodecError> {
    let sidecar =
        find_sidecar(sidecars, suffix).ok_or_else(|| malformed(suffix, "is missing".to_owned()))?;
    if sidecar.spec.n_bytes() != Some(sidecar.data.len()) {
        let reason = format!("{} bytes do not fill {:?}", sidecar.data.len(), sidecar.spec.dims);
        return Err(malformed(suffix, reason));
    }
    Ok(sidecar)
}

/// The number of columns of `[first, n]`, 1..=max.
fn second_dim(sidecar: &Sidecar, first: usize, max: usize) -> Result<usize, CodecError> {
    match *sidecar.spec.dims.as_slice() {
        [d, n] if d == first && (1..=max).contains(&n) => Ok(n),
        ref dims => {
            let reason = format!("has dimensions {dims:?}, not [{first}, 1..={max}]");
            Err(malformed(sidecar.spec.suffix, reason))
        }
    }
}

fn expect_dims(sidecar: &Sidecar, dims: &[usize]) -> Result<(), CodecError> {
    if sidecar.spec.dims == dims {
        return Ok(());
    }
    let reason = format!("has dimensions {:?}, not {dims:?}", sidecar.spec.dims);
    Err(malformed(sidecar.spec.suffix, reason))
}

fn finite_floats(sidecar: &Sidecar) -> Result<Vec<f32>, CodecError> {
    let suffix = sidecar.spec.suffix;
    let floats =
        sidecar.to_floats().ok_or_else(|| malformed(suffix, "is not F16 or F32".to_owned()))?;
    match floats.par_iter().position_first(|v| !v.is_finite()) {
        None => Ok(floats),
        Some(i) => Err(malformed(suffix, format!("value {i} is {}", floats[i]))),
    }
}

fn optional_floats(
    sidecars: &[Sidecar],
    suffix: &'static str,
    dims: &[usize],
) -> Result<Option<Vec<f32>>, CodecError> {
    if find_sidecar(sidecars, suffix).is_none() {
        return Ok(None);
    }
    let sidecar = required(sidecars, suffix)?;
    expect_dims(sidecar, dims)?;
    if sidecar.spec.element_type != codec::ElementType::F16 {
        return Err(malformed(suffix, "is not F16".to_owned()));
    }
    finite_floats(sidecar).map(Some)
}
