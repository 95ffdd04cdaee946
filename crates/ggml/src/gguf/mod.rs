//! GGUF files: reading ([`GgufFile`]) and writing ([`GgufWriter`]).

mod context;
mod error;
mod file;
mod scan;
mod value;
mod writer;

pub use error::{GgufError, WriteError};
pub use file::{GgufFile, TensorInfo};
pub use value::{Array, Value};
pub use writer::GgufWriter;

#[cfg(test)]
mod tests;
