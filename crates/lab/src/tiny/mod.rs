//! A small transformer of the llama architecture that was really trained, on tasks whose answers are exact.
//!
//! - [`tasks`]: copying a word, adding two numbers, closing brackets, as lines of text;
//! - [`dataset`]: train, validation and test lines without overlap, as jsonl;
//! - [`vocabulary`]: one token per character, bytes for all others, the same in llama.cpp and here;
//! - [`model`]: the forward pass on candle's tensors, with the row-wise parts operations ([`operations`]);
//! - [`train`]: AdamW, checkpoints that go on to the same bytes;
//! - [`export`]: GGUF F16 for llama.cpp.
//!
//! Everything follows from seeds. The same seed, machine and number of threads give the same weights.

pub mod batch;
#[cfg(feature = "tiny")]
pub mod checkpoint;
pub mod dataset;
mod error;
mod experts;
#[cfg(feature = "tiny")]
pub mod export;
#[cfg(feature = "tiny")]
pub mod model;
#[cfg(feature = "tiny")]
pub mod operations;
#[cfg(feature = "tiny")]
pub mod optimizer;
pub mod tasks;
#[cfg(feature = "tiny")]
pub mod train;
pub mod vocabulary;

pub use error::Error;
