//! Running a model on text and collecting the inputs of its FFN.
//!
//! [`Text`] turns files into tokens, [`Plan`] cuts them into contexts and decides which are held out, and
//! [`Capture`] runs them.

mod chat;
mod collector;
mod error;
mod plan;
mod run;
mod text;

pub use chat::{ChatFormat, render_jsonl};
pub use error::CaptureError;
pub use plan::{MIN_CONTEXTS, Plan};
pub use run::{Capture, CaptureParams, Timing};
pub use text::Text;
