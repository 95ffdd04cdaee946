//! Where and when an evaluation ran.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Load average over a minute when the evaluation began: above 1 others were at work, and speeds say less.
    pub load_at_start: Option<f64>,
}

impl Machine {
    /// This machine, now.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu =
            field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|m| m.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.map(|k| 1024 * k),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_at_start: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|l| l.parse().ok()),
        }
    }
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The time in UTC, as in `2025-11-22T09:15:00Z`.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        assert_eq!(field("a\t: 1\nmodel name\t: X: Y\n", "model name").as_deref(), Some("X: Y"));
        assert_eq!(field("a: 1", "b"), None);
        assert!(Machine::here().cores > 0);
    }
}
