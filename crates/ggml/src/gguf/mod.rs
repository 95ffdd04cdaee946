//! GGUF files: reading ([`GgufFile`]) and writing ([`GgufWriter`]).

mod coding;
mod context;
mod error;
mod file;
mod foreign;
mod mapped;
mod parts;
mod scan;
mod tensor;
mod value;
mod writer;

pub(crate) use mapped::map;

pub use error::{GgufError, WriteError};
pub use file::GgufFile;
pub use tensor::TensorInfo;
pub use value::{Array, Value};
pub use writer::GgufWriter;

#[cfg(test)]
mod tests;
