//! Harness A of SeedDelta: matrices whose coding error is known before anything is coded.
//!
//! 1. [`plan`] lists the cases; each names a family, a shape, a noise level, storage, inputs, base and delta.
//! 2. [`problem`] makes the case's matrix from the seed and predicts the squared error of its code from
//!    the way the matrix was made, by the formulas of [`theory`]. It never looks at the codec.
//! 3. [`check`] codes the matrix, writes and reads the tensors, applies the result to a complete
//!    orthonormal set of inputs and compares the squared error with the prediction.
//! 4. [`report`] draws the table and the JSON report.

pub mod check;
pub mod plan;
pub mod problem;
pub mod report;
pub mod theory;
