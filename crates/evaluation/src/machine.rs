//! Where and when an evaluation ran.

use std::time::{Duration, SystemTime};

use program::machine::{self, Ticks};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long the machine is watched for other work.
const WATCHED: Duration = Duration::from_secs(1);

/// The machine, as far as it explains figures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Processors that this program may use.
    pub cores: usize,
    /// Memory in bytes; `null` if the system does not tell.
    pub memory_bytes: Option<u64>,
    /// System and architecture.
    pub system: String,
    /// Processors that others kept busy in the second before the evaluation began: speeds say less the more there are.
    pub load_at_start: Option<f64>,
}

impl Machine {
    /// This machine, now. Takes a second, in which the calling program should do nothing.
    #[must_use]
    pub fn here() -> Self {
        Self {
            cpu: machine::processor().unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: machine::ram_bytes(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_at_start: busy_processors(),
        }
    }
}

/// The processors that were busy on average for a moment from now on. (The load average of the last minute would
/// count what this program's caller has just finished.)
fn busy_processors() -> Option<f64> {
    let before = Ticks::now()?;
    std::thread::sleep(WATCHED);
    Ticks::now()?.busy_since(before)
}

/// The time in UTC, as in `2025-11-22T09:15:00Z`.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
