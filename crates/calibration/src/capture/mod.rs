//! Running a model on text and collecting the inputs of its FFN.
//!
//! [`Text`] turns files into tokens, [`OwnText`] lets the model write them, [`Contexts`] cuts them into contexts and decides which are held out, and
//! [`Capture`] runs them.

mod chat;
mod collector;
mod contexts;
mod error;
mod own_text;
mod run;
mod text;

pub use chat::{ChatFormat, render_jsonl};
pub use contexts::{Contexts, MIN_CONTEXTS};
pub use error::CaptureError;
pub use own_text::OwnText;
pub use run::{Capture, CaptureParams, Timing};
pub use text::Text;
