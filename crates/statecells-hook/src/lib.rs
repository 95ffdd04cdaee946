//! What the patched llama.cpp links: the C ABI of `include/statecells.h`.
//!
//! Every function checks its pointers, catches panics and turns errors into a status with one line of
//! text. Behind the border everything is safe Rust on checked slices.
//!
//! From the outside in, each knowing only those behind it: `abi`, `abi_cache`, `abi_experts` (with `border`, `names`,
//! `arguments`, `c_types`), `matrix`, `experts`, `schemes` (the table: one file per family), `routed`, `check`, `product`, `sidecars`, `buffer`, `error`.

mod abi;
mod abi_cache;
mod abi_experts;
mod arguments;
mod border;
mod buffer;
mod c_types;
mod check;
mod error;
mod experts;
mod matrix;
mod names;
mod product;
mod routed;
mod schemes;
mod sidecars;

pub use abi::{
    statecells_abi_version, statecells_apply, statecells_check, statecells_flag,
    statecells_kernels, statecells_matrix_free, statecells_matrix_new,
    statecells_matrix_prepares_like, statecells_may_code, statecells_plan_matrix,
    statecells_prepare, statecells_suffixes, statecells_version,
};
pub use abi_cache::{
    Cache, statecells_cache_free, statecells_cache_new, statecells_cache_usage,
    statecells_experts_keep, statecells_matrix_keep,
};
pub use abi_experts::{
    statecells_apply_experts, statecells_check_experts, statecells_experts_free,
    statecells_experts_new, statecells_experts_prepares_like, statecells_plan_experts,
    statecells_prepare_experts,
};
pub use c_types::{
    StatecellsCacheUse, StatecellsFinding, StatecellsPlan, StatecellsRouted, StatecellsTensor,
};
pub use experts::Experts;
pub use matrix::Matrix;
