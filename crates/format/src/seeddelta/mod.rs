//! Tensors of a structured base and a sparse delta, `W ~ diag(row_scale) * W0 + delta`.
//!
//! The delta's tensors are [`crate::coo::Layout::PerRow`]'s; what the bases mean says the crate that fits them.

mod base;
mod spec;
mod tiling;

use crate::coo::Layout;

pub use base::{Base, Circulant, Identity, LowRank, Part, Tiles, row_scale_spec};
pub use spec::{BaseSpec, BaseType, ParseError, PartSpec};
pub use tiling::Tiling;

/// Name of the scheme.
pub const SCHEME: &str = "seeddelta";

/// Suffix of the factor of `identity`, `[1]`.
pub const BASE_SCALE: &str = "base_scale";
/// Suffix of the weights of `diagonal`, `[max(d_in, d_out)]`.
pub const BASE_DIAG: &str = "base_diag";
/// Suffix of the second factor of `lowrank`, [d_in, rank].
pub const BASE_V: &str = "base_v";
/// Suffix of the first factor of `lowrank`, [rank, d_out].
pub const BASE_U: &str = "base_u";
/// Suffix of the first column of `circulant`, `[max(d_in, d_out)]`.
pub const BASE_CIRC: &str = "base_circ";
/// Suffix of the tiles of `block`, [b, b, tiles].
pub const BASE_BLOCK: &str = "base_block";
/// Suffix of the base's row scale, `[d_out]` F16.
pub const ROW_SCALE: &str = "row_scale";

/// Every tensor that a matrix may have: those of the base first.
pub const SIDECARS: [&str; 9] = [
    BASE_SCALE,
    BASE_DIAG,
    BASE_V,
    BASE_U,
    BASE_CIRC,
    BASE_BLOCK,
    ROW_SCALE,
    Layout::PerRow.idx_suffix(),
    Layout::PerRow.val_suffix(),
];

/// Every tensor of a base and its row scale.
pub const BASE: &[&str] = SIDECARS.split_at(7).0;
