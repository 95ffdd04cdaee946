//! GGUF files: reading ([`GgufFile`]) and writing ([`GgufWriter`]).

mod coding;
mod context;
mod error;
mod file;
mod foreign;
mod parts;
mod scan;
mod value;
mod writer;

pub(crate) use file::map;

pub use error::{GgufError, WriteError};
pub use file::{GgufFile, TensorInfo};
pub use value::{Array, Value};
pub use writer::GgufWriter;

#[cfg(test)]
mod tests;
