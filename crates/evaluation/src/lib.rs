//! A/B evaluation of a compressed model against its base and against other types.
//!
//! [`evaluate`] runs llama.cpp's programs, reads what they write, compares and judges; [`EvaluationReport`]
//! holds everything that was found, and [`page::render`] shows it. Figures are only ever those that a program
//! gave in this run, or in an earlier run of the same inputs ([`cache`]).
//!
//! - Perplexities are compared pairwise, chunk by chunk, on the same tokens.
//! - Speeds are measured in turn, and compared within a round.
//! - Bytes are counted in the files.
#![forbid(unsafe_code)]

mod assemble;
pub mod cache;
pub mod comparison;
mod error;
mod evaluate;
pub mod file_report;
pub mod importance;
mod inputs;
pub mod logs;
pub mod machine;
pub mod measured;
pub mod memory;
mod options;
pub mod page;
mod progress;
pub mod qa;
mod questions;
pub mod report;
pub mod run;
mod server;
mod session;
mod speed;
pub mod stats;
mod summary;
pub mod variants;
pub mod verdict;

pub use error::Error;
pub use evaluate::evaluate;
pub use options::{Options, Part};
pub use report::EvaluationReport;
pub use summary::summary;
