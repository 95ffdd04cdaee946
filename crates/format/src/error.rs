//! Why a matrix or its tensors are refused.

use crate::MatrixShape;

/// Why a codec refuses a matrix or a set of sidecars. The program adds the tensor's name.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum CodecError {
    /// A parameter does not fit the matrix.
    #[error("{name} = {value} does not fit a matrix of {shape} (inputs x outputs): {reason}")]
    Parameter {
        /// Name of the parameter, as on the command line (`--dict-k`).
        name: &'static str,
        /// The value given.
        value: String,
        /// The matrix.
        shape: MatrixShape,
        /// What would fit.
        reason: String,
    },
    /// The source matrix holds a NaN or an infinity.
    #[error("weight {index} (row {row}, column {column}) is {value}: the source model is damaged")]
    NonFinite {
        /// Flat position `row * d_in + column`.
        index: usize,
        /// Output row.
        row: usize,
        /// Input column.
        column: usize,
        /// The value found.
        value: f32,
    },
    /// A sidecar tensor is missing, or its type, shape or content is not what the format says.
    #[error("sidecar '{suffix}': {reason}")]
    Sidecar {
        /// Last part of the tensor's name.
        suffix: &'static str,
        /// What is wrong.
        reason: String,
    },
}
