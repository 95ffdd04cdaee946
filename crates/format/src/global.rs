//! The stored form of a global dictionary: names and bounds.

/// Largest number of atoms: codes are I16 and hold +-(atom + 1).
pub const MAX_ATOMS: usize = i16::MAX as usize;

/// Suffix of the atoms, [d_in, M] F16 or F32; atom j is one contiguous vector.
pub const DICT: &str = "dict";
/// Suffix of the codes, [k, d_out] I16: +-(atom + 1), 0 is an empty slot.
pub const CODES: &str = "codes";
/// Suffix of the optional coefficients, [k, d_out] F16: coefficient = sign(code) * val.
pub const VALS: &str = "vals";
/// Suffix of the optional row scales, `[d_out]` F16.
pub const ROW_SCALE: &str = "row_scale";
