//! What files with coded matrices hold: names, metadata keys, shapes, and the tensors of every scheme.
//!
//! Writers (the codecs, the builder) and readers (the run-time hook, the reports) agree here and nowhere else. No
//! numerics, no FFI: sizes, positions and checks.
#![forbid(unsafe_code)]

mod codable;
pub mod coo;
mod error;
mod family;
pub mod global;
pub mod keys;
mod map;
mod named;
mod names;
mod role;
mod scheme;
pub mod sections;
pub mod seeddelta;
mod shape;
mod sidecar;

pub use codable::{Uncodable, check_architecture, codable};
pub use error::CodecError;
pub use family::{FAMILIES, Family, enable_key, flag_of, flags, sidecar_suffixes};
pub use family::{GLOBAL, SECTIONS, SEEDDELTA};
pub use map::{Matrix, ModelMap, Site};
pub use named::named;
pub use names::{InputId, MatrixId};
pub use role::{Branch, InputRole, Role, Width};
pub use scheme::Scheme;
pub use shape::{ExpertStack, ExpertsError, MatrixShape};
pub use sidecar::{
    ElementType, Sidecar, SidecarSpec, checked_sidecar, f16_clamped, find_sidecar, finite_values,
    n_bytes,
};
