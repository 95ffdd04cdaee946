//! Measurements that may fail without taking others along.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A measurement: its figures, or why there are none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Measured<T> {
    /// The figures; `null` if it failed.
    pub value: Option<T>,
    /// Why it failed, in one line.
    pub failure: Option<String>,
    /// The command, program first; empty if it came to none.
    pub command: Vec<String>,
    /// Name of the log in the output folder.
    pub log: Option<String>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Whether it was taken over from an earlier run.
    pub reused: bool,
}

impl<T> Measured<T> {
    /// A measurement that failed for `reason`.
    #[must_use]
    pub fn failed(reason: impl Into<String>) -> Self {
        Self {
            value: None,
            failure: Some(reason.into()),
            command: Vec::new(),
            log: None,
            seconds: 0.0,
            reused: false,
        }
    }

    /// A measurement without a program.
    #[must_use]
    pub fn of(value: T) -> Self {
        Self {
            value: Some(value),
            failure: None,
            command: Vec::new(),
            log: None,
            seconds: 0.0,
            reused: false,
        }
    }

    /// The same with other figures.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Measured<U> {
        let Self { value, failure, command, log, seconds, reused } = self;
        Measured { value: value.map(f), failure, command, log, seconds, reused }
    }
}

/// The figures of a measurement that was made and did not fail.
pub fn value<T>(measured: &Option<Measured<T>>) -> Option<&T> {
    measured.as_ref()?.value.as_ref()
}
