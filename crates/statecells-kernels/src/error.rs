//! Why a matrix, a view or a product is refused.

/// Why data are refused. The program adds the tensor's name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A buffer does not hold what the shape says.
    #[error("{what}: expected {expected} elements, got {got}")]
    Length {
        /// The buffer.
        what: &'static str,
        /// Elements the shape asks for.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A dimension is zero, too large or does not agree with another one.
    #[error("{what} = {value}: {reason}")]
    Dimension {
        /// The dimension.
        what: &'static str,
        /// The value given.
        value: usize,
        /// What would fit.
        reason: &'static str,
    },
    /// A code names an atom that the dictionary does not have.
    #[error("code {code} in slot {slot} of row {row} is outside -{n_atoms}..={n_atoms}")]
    CodeRange {
        /// The code found.
        code: i16,
        /// Output row.
        row: usize,
        /// Slot within the row.
        slot: usize,
        /// Atoms of the dictionary.
        n_atoms: usize,
    },
    /// A coefficient, scale or atom is a NaN or an infinity.
    #[error("{what} {index} is {value}")]
    NonFinite {
        /// The buffer.
        what: &'static str,
        /// Flat position in the buffer.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// A position in a sparse correction lies outside the matrix or out of order.
    #[error("{what} {index} is {value}: {reason}")]
    Position {
        /// The buffer.
        what: &'static str,
        /// Flat position in the buffer.
        index: usize,
        /// The position found.
        value: i64,
        /// What would fit.
        reason: &'static str,
    },
}

/// Checks a buffer's length.
pub(crate) fn check_len(
    what: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), KernelError> {
    if expected == got { Ok(()) } else { Err(KernelError::Length { what, expected, got }) }
}

/// Checks that all of `values` are finite.
pub(crate) fn check_finite_f16(
    what: &'static str,
    values: &[half::f16],
) -> Result<(), KernelError> {
    // An exponent of all ones is a NaN or an infinity; integer compares keep this scan at memory speed.
    let bad = |v: &half::f16| v.to_bits() & 0x7c00 == 0x7c00;
    match values.iter().position(bad) {
        None => Ok(()),
        Some(index) => Err(KernelError::NonFinite { what, index, value: values[index].to_f32() }),
    }
}
