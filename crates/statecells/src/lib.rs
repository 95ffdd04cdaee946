//! StateCells: weight matrices as sparse combinations of learned atoms.
//!
//! [`GlobalCodec`] learns one dictionary over the whole input of a matrix and writes every output row as
//! a combination of at most k of its atoms (schemes `sign`, `sign+row_scale`, `sign+vals`). It fills the
//! [`codec::Codec`] contract, so that the builder and the reports need not know it.
//!
//! Everything here is plain arithmetic on slices: no FFI, no files, and the same bytes for the same input
//! whatever the number of threads.
#![forbid(unsafe_code)]

pub mod global;
mod linalg;
mod metric;
mod scheme;
pub mod sections;
#[cfg(test)]
mod testing;

pub use global::{GlobalCodec, GlobalParams, complete_row_scale};
pub use scheme::{DictType, Encoder};
pub use sections::{SectionsCodec, SectionsParams};
