//! What the FFN matrices of a model see on real text, for codecs that fit their error to it.
//!
//! For every FFN input (gate and up share theirs) a calibration holds the second moment H = sum x x^T, or
//! sampled inputs where H would be too large, and a hold-out from other tokens of the same text that is
//! never used to fit. [`Calibration`] reads the file, [`write()`] writes it, and the module `capture`
//! (feature `capture`) collects it by running the model.
//!
//! Shapes are in ggml order, innermost dimension first.
#![forbid(unsafe_code)]

#[cfg(feature = "capture")]
pub mod capture;
mod error;
mod format;
mod input;
mod keys;
mod mix;
mod moment;
mod reader;
mod record;
mod samples;
mod sketch;

pub use error::CalibrationError;
pub use format::{DEFAULT_MAX_MOMENT_DIM, planned_bytes, write};
pub use input::{CalibratedInput, FfnInput, Fitted, InputKind};
pub use moment::{MomentScratch, SecondMoment};
pub use reader::Calibration;
pub use record::{ModelId, Record, TextId};
pub use samples::{SampleColumns, Samples, stratified};
pub use sketch::{Overlap, SHINGLE_TOKENS, TextSketch};
