//! What the end-to-end tests share: where the programs and models are, and how to run them.

pub mod coding;
pub mod logits;
pub mod model_file;
pub mod programs;
pub mod refusing;
pub mod server;
