//! Looking at a model as a whole: what matrices see behind those that are coded already, and tuning.
//!
//! [`Stream`] takes text through a model of any architecture part by part, in llama.cpp, as it was and as it is coded so far.
//! [`Transformer`] runs a GGUF of a known family layer by layer in F32, with gradients. With it, dictionaries, row
//! scales and exact weights of a coded model are tuned against the outputs of the model as it was ([`Tuner`]). The
//! codes stay as they are. [`FfnTuner`] does so for one FFN after the other, of any architecture. How a family computes is data. Row-wise parts of a layer are single operations ([`fused`]).

mod adam;
mod attention;
mod check;
mod config;
mod costs;
mod error;
mod family;
mod ffn_form;
mod ffn_text;
mod ffn_tuner;
pub mod fused;
mod kept;
mod layer;
mod loss;
mod output;
mod parameters;
mod parts;
mod rotary;
mod shortfall;
mod split;
mod states;
mod stream;
mod transformer;
mod tuner;
mod watch;
mod weights;

pub use check::Outline;
pub use error::TuningError;
pub use family::families;
pub use ffn_tuner::{FfnErrors, FfnEvent, FfnTuner};
pub use kept::{Identity, KeptShape, KeptStates};
pub use split::{machine, split_among};
pub use stream::{Decoded, Stream, check, stream_bytes};
pub use transformer::Transformer;
pub use tuner::{Listener, TuneParams, TuneReport, Tuner};
pub use watch::{Seen, Watch};
pub use weights::TokenWeights;
