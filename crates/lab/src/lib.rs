//! Research beside the product; of the programs that make files, only `seeddelta-build --policy auto` asks here.
//!
//! - `bench` (feature `bench`): products of the run-time kernels against ggml's own types;
//! - [`toy`]: SeedDelta's codec on matrices whose error is known in closed form;
//! - `forms` (feature `forms`): many SeedDelta forms of one model, and what would have foretold their loss;
//! - `tiny` (feature `forms`; `tiny` for all that computes gradients): a small model that is trained here on exact tasks.
#![forbid(unsafe_code)]

#[cfg(feature = "bench")]
pub mod bench;
#[cfg(feature = "forms")]
pub mod forms;
#[cfg(feature = "forms")]
pub mod tiny;
pub mod toy;
