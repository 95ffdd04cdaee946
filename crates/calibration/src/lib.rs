//! What the FFN matrices of a model see on real text, for codecs that fit their error to it.
//!
//! For every FFN input (gate and up share theirs) a calibration holds the second moment H = sum x x^T, or
//! sampled inputs where H would be too large, and a hold-out from other tokens of the same text that is
//! never used to fit. [`Calibration`] reads the file, [`write()`] writes it, and the module `capture`
//! (feature `capture`) collects it by running the model.
//!
//! # File
//! A GGUF with `general.type` = `calibration`. Per input, named by what it feeds, `blk.N.ffn_in` (gate and up)
//! and `blk.N.ffn_down`, of experts `blk.N.ffn_exps_in` and `blk.N.ffn_down_exps`, of a shared expert `blk.N.ffn_shexp_in` and
//! `blk.N.ffn_down_shexp`:
//!
//! | tensor | type, shape | meaning |
//! |---|---|---|
//! | `.h` | F32 `[d * (d + 1) / 2]` | sum of x x^T over the fitted tokens: lower triangle, row after row (numpy: `H[np.tril_indices(d)]`) |
//! | `.samples` | F16 `[d, n]` | instead of `.h` where d is too large: fitted inputs, divided by their scale |
//! | `.sample_scale` | F32 `[n]` | the scale of each, a power of two |
//! | `.expert_h` | F32 `[d * (d + 1) / 2, n_experts]` | as `.h`, of each expert over what it has seen; not where all of them would be too large |
//! | `.expert_squares` | F32 `[d, n_experts]` | instead: the sum of x_i^2 over what each expert has seen |
//! | `.expert_tokens` | F32 `[n_experts]` | how many inputs that are |
//! | `.holdout_h` | F32 `[d * (d + 1) / 2]` | as `.h`, over the held-out tokens; not where d is too large |
//! | `.holdout` | F16 `[d, n]` | held-out inputs, divided by their scale |
//! | `.holdout_scale` | F32 `[n]` | the scale of each |
//!
//! A file of the text alone has none of these: enough for a program that runs the model itself.
//!
//! Metadata `calibration.*`: `version`, `model.{sha256,architecture,n_layer,n_embd,n_ff}`,
//! `text.{names,sha256}`, `text.{shingle_tokens,shingle_hashes}` (see [`TextSketch`]),
//! `tokens.{fitted,held_out,ids}`, `n_ctx`, `seed`, `tool` and `llama_cpp` (versions).
//!
//! Shapes are in ggml order, innermost dimension first.
#![forbid(unsafe_code)]

#[cfg(feature = "capture")]
pub mod capture;
mod error;
mod experts;
mod format;
mod growing;
mod input;
mod keys;
mod merge;
mod mix;
mod moment;
mod passage;
mod provenance;
mod reader;
mod samples;
mod sketch;

pub use error::CalibrationError;
pub use experts::{Experts, SquareSums};
pub use format::{DEFAULT_MAX_EXPERT_MIB, DEFAULT_MAX_MOMENT_DIM, planned_bytes, write};
pub use growing::{GrowingInput, Sampling};
pub use input::{CalibratedInput, Fitted};
pub use merge::Share;
pub use moment::{MomentScratch, SecondMoment, by_value};
pub use passage::{HOLD_OUT_EVERY, PassageKind, passage_kind};
pub use provenance::{ModelId, Provenance, TextId};
pub use reader::Calibration;
pub use samples::{SampleColumns, Samples, stratified};
pub use sketch::{Overlap, SHINGLE_TOKENS, TextSketch};
