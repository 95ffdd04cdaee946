//! Matrices coded in sections (scheme `sections`): per block of 8 inputs and section one of 16 atoms.
//!
//! A product runs in two steps with a barrier between them. [`TableBuilder::build`] projects the
//! blocks of the input on all atoms and quantizes the projections; [`SectionMatrix::product`] looks
//! the codes up, 32 rows per byte shuffle, and sums:
//!
//! `y[r, t] = row_scale[r] * sum_g scale[g, t] * sum_{planes of g} entry[plane, code, t] + outliers`
//!
//! The inner sum is an exact integer sum, the outer one runs over the groups in order by fused
//! multiply-add. All forms give the same bits, for one token and for many.

mod bundles;
mod cache;
mod decode;
mod decoder;
mod fill;
mod inputs;
mod lookup;
#[cfg(target_arch = "x86_64")]
mod lookup_vbmi;
mod matrix;
mod panel;
mod products;
mod shape;
mod table_builder;
mod tables;

pub use cache::{CacheUse, TileCache};
pub use decoder::Decoder;
pub(crate) use decoder::{AtomBytes, FINE};
#[cfg(target_arch = "aarch64")]
pub(crate) use inputs::TOKENS;
pub(crate) use inputs::WORD;
pub use inputs::{InputLayout, InputOutput, Inputs};
pub use matrix::SectionMatrix;
pub(crate) use shape::BIAS;
pub use shape::{ATOMS, BLOCK, MAX_SECTIONS, PAIR_BYTES, SectionShape, TableEntry, TableLayout};
pub use table_builder::TableBuilder;
pub use tables::{Atoms, TableOutput, Tables};
