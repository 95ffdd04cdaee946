//! The contract between weight codecs and the programs that use them, quality metrics, and sparse (COO)
//! corrections.
//!
//! StateCells and SeedDelta are two fillings of the [`Codec`] trait. The builder, the evaluation and the
//! reports work on this crate's types and those of `format`; neither codec knows the other.
#![forbid(unsafe_code)]

mod codec;
pub mod coo;
pub mod functional;
pub mod metrics;

pub use codec::{Codec, EncodeContext, MatMul, Progress, ReferenceMatMul, check_finite};
