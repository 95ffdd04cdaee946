//! What the patched llama.cpp links: the C ABI of `include/statecells.h`.
//!
//! Every function checks its pointers, catches panics and turns errors into a status with one line of
//! text. Behind the border everything is safe Rust on checked slices.

mod abi;
mod arguments;
mod buffer;
mod check;
mod global;
mod matrix;
mod sections;
mod seeddelta;
mod sidecars;

pub use abi::{
    StatecellsFinding, StatecellsPlan, StatecellsTensor, statecells_abi_version, statecells_apply,
    statecells_check, statecells_kernels, statecells_matrix_free, statecells_matrix_new,
    statecells_may_code, statecells_plan_matrix, statecells_prepare, statecells_suffixes,
    statecells_version,
};
pub use matrix::Matrix;
