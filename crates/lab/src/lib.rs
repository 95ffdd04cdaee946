//! Research beside the product; of the product, only `seeddelta-build --policy auto` asks here.
//!
//! - [`toy`]: SeedDelta's codec on matrices whose error is known in closed form;
//! - `forms` (feature `forms`): many SeedDelta forms of one model, and what would have foretold their loss;
//! - `tiny` (feature `forms`; `tiny` for all that computes gradients): a small model that is trained here on exact tasks.
#![forbid(unsafe_code)]

#[cfg(feature = "forms")]
pub mod forms;
#[cfg(feature = "forms")]
pub mod tiny;
pub mod toy;
