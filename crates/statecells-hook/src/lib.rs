//! What the patched llama.cpp links: the C ABI of `include/statecells.h`.
//!
//! Every function checks its pointers, catches panics and turns errors into a status with one line of
//! text. Behind the border everything is safe Rust on checked slices.
//!
//! From the outside in, each knowing only those behind it: `abi` (with `names`, `arguments`, `c_types`), `matrix`, `schemes`
//! (the table: one file per family), `check`, `product`, `sidecars`, `buffer`, `error`.

mod abi;
mod arguments;
mod buffer;
mod c_types;
mod check;
mod error;
mod matrix;
mod names;
mod product;
mod schemes;
mod sidecars;

pub use abi::{
    statecells_abi_version, statecells_apply, statecells_check, statecells_flag,
    statecells_kernels, statecells_matrix_free, statecells_matrix_new, statecells_may_code,
    statecells_plan_matrix, statecells_prepare, statecells_suffixes, statecells_version,
};
pub use c_types::{StatecellsFinding, StatecellsPlan, StatecellsTensor};
pub use matrix::Matrix;
