//! Looking at a model as a whole: what matrices see behind those that are coded already, and tuning.
//!
//! [`Stream`] takes text through a model of any architecture part by part, in llama.cpp, as it was and as it is coded so far.
//! [`Llama`] runs a GGUF of that architecture layer by layer in F32. With it, dictionaries, row scales and
//! exact weights of a coded model are tuned against the outputs of the model as it was ([`Tuner`]). The codes
//! stay as they are. Row-wise parts of a layer are single operations ([`fused`]).

mod adam;
mod attention;
mod check;
mod config;
mod costs;
mod error;
pub mod fused;
mod layer;
mod llama;
mod loss;
mod parameters;
mod shortfall;
mod split;
mod states;
mod stream;
mod tuner;
mod watch;
mod weights;

pub use check::Outline;
pub use costs::ReadFfn;
pub use error::TuningError;
pub use layer::FfnWeights;
pub use llama::Llama;
pub use split::{machine, split_among};
pub use stream::{Decoded, Stream, check, stream_bytes};
pub use tuner::{TuneParams, TuneReport, Tuner};
pub use watch::{Seen, Watch};
pub use weights::TokenWeights;
