//! What every weight codec shares: matrix shapes, sidecar tensors, tensor names, metadata keys,
//! quality metrics and sparse (COO) corrections.
//!
//! StateCells and SeedDelta are two fillings of the [`Codec`] trait. The builder, the run-time hook,
//! the evaluation and the reports work on this crate's types only; neither codec knows the other.
#![forbid(unsafe_code)]

mod codable;
mod codec;
pub mod coo;
pub mod functional;
pub mod keys;
pub mod metrics;
mod names;
mod shape;
mod sidecar;

pub use codable::{Uncodable, check_architecture, codable};
pub use codec::{
    Codec, CodecError, EncodeContext, MatMul, Progress, ReferenceMatMul, check_finite, n_bytes,
};
pub use names::{FfnTensor, Target};
pub use shape::MatrixShape;
pub use sidecar::{ElementType, Sidecar, SidecarSpec, find_sidecar};
