//! What every build program shares: the source model, the plan, encoding with checkpoints and resume,
//! putting the output together, and the report.
//!
//! A program parses its flags, brings a [`Method`] (its codec with parameters) and calls this crate; it
//! knows nothing about single codecs. A finished output is always complete: everything is written to a
//! work folder beside it ([`WorkFolder`]) and moved in place in one step.

mod allocation;
mod assemble;
mod build;
mod bus_error;
pub mod by_tensor;
mod calibrated;
mod encode;
mod error;
mod existing;
pub mod files;
pub mod flags;
mod functional;
mod importance;
mod inputs;
pub mod inspect;
mod interrupt;
mod job;
mod machine;
mod memory;
mod method;
mod mtp;
mod plan;
pub mod prepare;
mod printable;
pub mod progress;
mod random_gap;
mod recapturing;
mod record;
pub mod report;
mod result;
mod seed;
mod selection;
mod source;
mod summary;
pub mod table;
mod tune;
mod unfit;
mod work;

pub use allocation::{Allocation, Survey};
pub use assemble::{Assembly, publish};
pub use build::{Build, BuildOptions, Finished, open_work_folder};
pub use bus_error::explain_bus_errors;
pub use encode::Encoder;
pub use error::Error;
pub use existing::ExistingOutput;
pub use functional::{FunctionalErrors, FunctionalMetrics, OVERFITTED};
pub use importance::{Importance, Shaping, read_importance};
pub use inputs::{Decoded, Inputs, Recapture, Recaptured};
pub use interrupt::{EXIT_INTERRUPTED, Interrupt, conclude};
pub use job::Job;
pub use memory::{keep_freed_memory, memory_bytes};
pub use method::{Encoded, Encoding, Method};
pub use plan::{Plan, PlanItem, PlanTotals, bits_per_weight, saved, settings_text};
pub use printable::printable;
pub use progress::Reporter;
pub use random_gap::random_gap;
pub use record::{RECORD_VERSION, Record, TensorRecord};
pub use report::Origin;
pub use result::{ErrorMetrics, Settings, StoredSpec, TensorResult};
pub use seed::tensor_seed;
pub use selection::{LayerList, Selection};
pub use source::Source;
pub use tune::{Tunable, Tuned, TuningReport};
pub use work::{Existing, Stage, WorkFolder, sidecars_sha256};
