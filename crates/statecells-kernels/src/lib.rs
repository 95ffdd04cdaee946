//! Run-time arithmetic of dictionary-coded matrices.
//!
//! Every kernel has one scalar reference and fast forms for AVX2, AVX-512 and NEON, chosen by an
//! [`Isa`] value that can only be had for instructions this machine has. This is the only crate of
//! the workspace with SIMD `unsafe`; the public entry points are safe. What makes an unchecked read
//! sound (a code that indexes a table, a length) is checked once, when a matrix is constructed, and
//! is an invariant of the type from then on.
//!
//! The kernels start no threads. The caller runs each of its `nth` threads once per product and
//! hands thread `ith` an [`Output`] that lets it write its own rows only, so one call needs no
//! barrier. The result of a product does not depend on `nth`, nor on how many tokens are computed
//! together, nor, unless a function says otherwise, on the [`Isa`].
//!
//! # Shapes
//! ggml order, innermost dimension first: activations `x`: [d_in, n_tokens], results
//! `y`: [d_out, n_tokens]; each token is contiguous and tokens are `stride` elements apart.

pub mod base;
mod common;
mod error;
pub mod gather;
mod isa;
mod output;
mod part;
mod route;
mod scratch;
pub mod sections;
mod simd;
pub mod sparse;
mod transpose;
mod view;

pub use error::KernelError;
pub use gather::{GatherMatrix, GatherShape};
pub use isa::{Isa, IsaError};
pub use output::Output;
pub use part::{Part, ROW_TILE};
pub use route::{Dispatch, Route};
pub use scratch::Scratch;
pub use sections::{
    Atoms, CacheUse, Decoder, InputLayout, InputOutput, Inputs, SectionMatrix, SectionShape,
    TableBuilder, TableEntry, TableLayout, TableOutput, Tables, TileCache,
};
pub use sparse::{ColumnIndex, SparseMatrix};
pub use view::Columns;
