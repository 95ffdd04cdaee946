//! The structures of `include/statecells.h`.

use std::ffi::{c_char, c_void};

use statecells_kernels::CacheUse;

use crate::check::{Finding, Place};
use crate::product::Plan;
use crate::sidecars::ggml_type;

/// `statecells_tensor` of the header.
#[repr(C)]
#[derive(Debug)]
pub struct StatecellsTensor {
    /// Last part of the tensor's name, a C string.
    pub suffix: *const c_char,
    /// `enum ggml_type`.
    pub ggml_type: i32,
    /// Dimensions, innermost first; unused ones are 1.
    pub ne: [i64; 4],
    /// Null while the data is not loaded.
    pub data: *const c_void,
    /// Size of the data in bytes.
    pub n_bytes: usize,
}

/// `statecells_routed` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StatecellsRouted {
    /// [d_in, n_columns].
    pub x: *const f32,
    /// [n_used, n_tokens], `ids_stride` apart.
    pub ids: *const i32,
    /// As many as tokens, or as slots.
    pub n_columns: i64,
    /// Experts per token.
    pub n_used: i64,
    /// Tokens.
    pub n_tokens: i64,
    /// From the ids of one token to those of the next.
    pub ids_stride: i64,
}

/// `statecells_plan` of the header.
#[repr(C)]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StatecellsPlan {
    /// Innermost dimension of what `statecells_prepare` writes; 0 if there is no such step.
    pub prepared_ne0: i64,
    /// Columns of the same per token.
    pub prepared_columns: i64,
    /// `enum ggml_type` of the same.
    pub prepared_type: i32,
    /// Whether `ggml_mul_mat(dict, ...)` follows.
    pub project: i32,
}

impl From<Plan> for StatecellsPlan {
    fn from(plan: Plan) -> Self {
        Self {
            prepared_ne0: plan.prepared_ne0 as i64,
            prepared_columns: plan.prepared_columns as i64,
            prepared_type: ggml_type(plan.prepared_type),
            project: i32::from(plan.project),
        }
    }
}

/// `statecells_cache_use` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatecellsCacheUse {
    /// Bytes of decoded weights now.
    pub n_bytes: usize,
    /// Bytes that there may be.
    pub limit: usize,
    /// Parts that were found.
    pub n_hits: u64,
    /// Parts that were asked for.
    pub n_asked: u64,
}

impl From<CacheUse> for StatecellsCacheUse {
    fn from(CacheUse { n_bytes, limit, n_hits, n_asked }: CacheUse) -> Self {
        Self { n_bytes, limit, n_hits, n_asked }
    }
}

/// `statecells_finding` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StatecellsFinding {
    /// 1 for an input, 2 for an output; 0 for nothing.
    pub place: i32,
    /// The value.
    pub value: f32,
    /// Column of the product.
    pub token: i64,
    /// Input or output within the column.
    pub index: i64,
}

impl From<Finding> for StatecellsFinding {
    fn from(found: Finding) -> Self {
        let place = match found.place {
            Place::Input => 1,
            Place::Output => 2,
        };
        Self { place, value: found.value, token: found.token as i64, index: found.index as i64 }
    }
}
