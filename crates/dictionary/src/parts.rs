//! A global dictionary and its codes as tensors, and the reader.

use format::global::{CODES, DICT, MAX_ATOMS, ROW_SCALE, VALS};
use format::{
    CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, checked_sidecar, find_sidecar,
    finite_values,
};
use rayon::prelude::*;

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
        // a single atom or row may come without its dimension of 1
        let dims = |suffix| match find_sidecar(sidecars, suffix).map(|s| s.spec.dims.as_slice()) {
            Some(&[first]) => Ok((first, 1)),
            Some(&[first, second, ..]) => Ok((first, second)),
            _ => Err(malformed(suffix, "missing".to_owned())),
        };
        let (m, k) = (dims(DICT)?.1, dims(CODES)?.0);
        if !(1..=MAX_ATOMS).contains(&m) {
            let reason = format!("has {m} atoms, must have 1 to {}", MAX_ATOMS);
            return Err(malformed(DICT, reason));
        }
        let atoms = floats(sidecars, DICT, &[shape.d_in, m], true)?;
        let spec = SidecarSpec::new(CODES, ElementType::I16, &[k, shape.d_out]);
        let codes = checked_sidecar(sidecars, &spec)?.to_i16().unwrap_or_default();
        if let Some(i) = codes.par_iter().position_first(|c| usize::from(c.unsigned_abs()) > m) {
            let reason = format!("code {} of row {} is outside +-{m}", codes[i], i / k.max(1));
            return Err(malformed(CODES, reason));
        }
        let optional = |suffix, dims: &[usize]| {
            let found = find_sidecar(sidecars, suffix);
            found.map(|_| floats(sidecars, suffix, dims, false)).transpose()
        };
        let vals = optional(VALS, &[k, shape.d_out])?;
        let row_scale = optional(ROW_SCALE, &[shape.d_out])?;
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
fn malformed(suffix: &'static str, reason: String) -> CodecError {
    CodecError::Sidecar { suffix, reason }
}

/// The finite values of the sidecar `suffix`, F16 or, with `wide`, F32.
fn floats(
    sidecars: &[Sidecar],
    suffix: &'static str,
    dims: &[usize],
    wide: bool,
) -> Result<Vec<f32>, CodecError> {
    let is_f32 =
        find_sidecar(sidecars, suffix).is_some_and(|s| s.spec.element_type == ElementType::F32);
    let element = if wide && is_f32 { ElementType::F32 } else { ElementType::F16 };
    finite_values(sidecars, &SidecarSpec::new(suffix, element, dims))
}
