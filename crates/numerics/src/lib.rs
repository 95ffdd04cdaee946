//! What all weight codecs and everything that fits to them share, and what is no code itself: the contract between
//! codecs and the programs that use them, dense products, quality metrics, errors of outputs, sparse (COO) corrections, second
//! moments of inputs and their factors, factorizations.
//!
//! Scheme by scheme there is a crate that fills the [`Codec`] trait. The builder, the evaluation and the reports
//! work on this crate's types and those of `format`; no codec knows another.
//!
//! Everything here is plain arithmetic on slices: no FFI, no files, and the same bytes for the same input whatever
//! the number of threads.
#![forbid(unsafe_code)]

mod codec;
pub mod coo;
#[cfg(feature = "factors")]
mod factored;
pub mod functional;
#[cfg(feature = "factors")]
pub mod linalg;
pub mod metrics;
#[cfg(feature = "factors")]
mod moment;
#[cfg(feature = "factors")]
mod products;
#[cfg(feature = "factors")]
mod retarget;
mod shrink;
pub mod testing;

pub use codec::{Codec, EncodeContext, MatMul, Progress, ReferenceMatMul, check_finite};
#[cfg(feature = "factors")]
pub use factored::{FactoredMoment, PAD};
#[cfg(feature = "factors")]
pub use moment::{Moment, SPAN_STEP};
#[cfg(feature = "factors")]
pub use products::TiledMatMul;
#[cfg(feature = "factors")]
pub use retarget::{Retarget, SampledLack, best_share, best_share_of};
pub use shrink::{Shrink, choose_shrink};
