//! What every build program shares: the source model, the plan, encoding with checkpoints and resume,
//! putting the output together, and the report.
//!
//! A program parses its flags, brings a [`Method`] (one of [`methods`] with its parameters) and calls this crate, which
//! knows nothing about single codecs outside of that module. A finished output is always complete: everything is written to a
//! work folder beside it ([`WorkFolder`]) and moved in place in one step.

mod allocation;
mod assemble;
mod build;
pub mod by_tensor;
#[cfg(feature = "calibrate")]
pub mod calibrate;
mod calibrated;
mod decode;
mod encode;
mod encode_all;
mod error;
mod existing;
pub mod flags;
mod functional;
mod growth;
mod importance;
mod inputs;
mod job;
mod machine;
mod method;
pub mod methods;
mod mtp;
mod plan;
pub mod prepare;
mod random_gap;
mod recapturing;
mod record;
pub mod report;
mod result;
mod resume;
mod seed;
mod source;
mod summary;
mod take_over;
mod tune;
mod unfit;
mod work;

pub use allocation::{Allocation, Survey};
pub use assemble::{Assembly, publish};
pub use build::{Build, BuildOptions, Finished};
pub use calibrated::{CalibrationSource, MakesCalibration};
pub use decode::DecodeRun;
pub use encode::{Steps, TensorEncoder};
pub use error::Error;
pub use existing::ExistingOutput;
pub use functional::{FunctionalErrors, FunctionalMetrics, OVERFITTED};
pub use growth::Growth;
pub use importance::{ExpertImportance, Importance, Shaping, read_importance};
pub use inputs::{Decoded, Inputs, Recapture, Recaptured};
pub use job::Job;
pub use method::{Encoded, Encoding, Method, Sequence, SharedBudget, Tuning};
pub use plan::{Plan, PlanItem, PlanTotals};
pub use random_gap::random_gap;
pub use record::{RECORD_VERSION, Record, TensorRecord};
pub use report::Origin;
pub use result::{ErrorMetrics, StoredSpec, TensorResult};
pub use resume::open_work_folder;
pub use seed::tensor_seed;
pub use source::Source;
pub use tune::{FfnTuningReport, Tunable, Tuned, TuningOutcome, TuningReport};
pub use work::{Existing, Stage, WorkFolder, sidecars_sha256};
