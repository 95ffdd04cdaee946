//! The llama architecture with gradients, on the CPU, by candle.
//!
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
mod split;
mod stream;
mod tuner;
mod watch;
mod weights;

pub use check::Outline;
pub use costs::ReadFfn;
pub use error::TuningError;
pub use llama::{FfnWeights, Llama};
pub use split::{machine, split_among};
pub use stream::{LayerFfn, Stream};
pub use tuner::{TuneParams, TuneReport, Tuner};
pub use watch::{Seen, Watch};
