//! SeedDelta: a weight matrix as a structured base plus a sparse correction,
//! `W ~ diag(row_scale) * W0 + delta`.
//!
//! W has `d_in` inputs and `d_out` outputs ([`format::MatrixShape`]); `W[r, i]` is the weight from input
//! i to output r, stored at `r * d_in + i`.
//!
//! # Bases
//! Every base is a linear space (low rank: a set) of matrices; fitting takes its member nearest to W in
//! `sum_ri h_i (W - W0)[r, i]^2`, with `h_i = E[x_i^2]` of an imatrix or 1. With `n = max(d_in, d_out)`:
//!
//! | name | W0\[r, i\] | parameters | fit |
//! |---|---|---|---|
//! | `none` | 0 | 0 | |
//! | `identity` | c on the tiles of size 1 | 1 | h-weighted mean over the tiles |
//! | `diagonal` | one weight per tile of size 1 | n | the weights themselves |
//! | `block:b` | dense in each tile of size b | b^2 ceil(n / b) | the weights themselves |
//! | `circulant` | `c[(r - i) mod n]` | n | h-weighted mean over `r - i = t` |
//! | `lowrank:k` | `sum_j u[r, j] v[j, i]` | k (d_in + d_out) | truncated SVD of `W diag(sqrt(h))` |
//! | `a+b` | sum of two | both | b on the residual of a, then alternating |
//!
//! **Rectangular matrices.** The tiles of size b cut inputs and outputs into blocks of b (the last may
//! be shorter); tile t joins input block `t mod ceil(d_in / b)` with output block
//! `t mod ceil(d_out / b)`, for t below the larger of the two counts. So a square matrix has its block
//! diagonal, and in a wide or tall one the blocks start again from the top: every input and every output
//! is covered, and the error is never larger than with the part on the main diagonal alone. The
//! circulant is the upper left corner, d_out x d_in, of an n x n one. Members of the n x n space that
//! agree on the corner are the same base, so the mean over the corner's own entries is the exact
//! projection.
//!
//! # Tensors
//! Innermost dimension first. Base tensors are F16 or F32 ([`format::seeddelta::BaseType`]).
//!
//! | suffix | shape | meaning |
//! |---|---|---|
//! | `base_scale` | \[1\] | c of `identity` |
//! | `base_diag` | \[n\] | tile by tile |
//! | `base_block` | \[b, b, tiles\] | input, output, tile; 0 outside the matrix |
//! | `base_circ` | \[n\] | c: the first column of the n x n matrix |
//! | `base_v` | \[d_in, k\] | row j is `v[j]`; the singular value is split evenly between u and v |
//! | `base_u` | \[k, d_out\] | row r is `u[r]` |
//! | `row_scale` | \[d_out\] F16, optional | multiplies the base's rows |
//! | `delta_idx`, `delta_val` | \[K, d_out\] | the K largest residuals of each row, see [`format::coo::Layout::PerRow`] |
//!
//! The tensors describe themselves: [`SeedDelta::from_sidecars`] needs no other parameters.
#![forbid(unsafe_code)]

mod choice;
mod circulant;
mod codec_impl;
mod fit;
mod lowrank;
mod model;
mod part;
mod tiles;
mod weights;

pub use choice::Choice;
pub use codec_impl::{Delta, SeedDeltaCodec};
pub use model::SeedDelta;
