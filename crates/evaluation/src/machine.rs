//! Where and when an evaluation ran.

use std::time::{Duration, SystemTime};

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
            load_at_start: busy_processors(|| read("/proc/stat")),
        }
    }
}

/// The processors that were busy on average between two readings of /proc/stat. (The load average of the last
/// minute would count what this program's caller has just finished.)
fn busy_processors(read: impl Fn() -> String) -> Option<f64> {
    let before = Ticks::parse(&read())?;
    std::thread::sleep(WATCHED);
    Ticks::parse(&read())?.busy_since(before)
}

/// Time since the start of the machine, over all processors, in the units of /proc/stat.
#[derive(Clone, Copy)]
struct Ticks {
    all: f64,
    idle: f64,
    processors: usize,
}

impl Ticks {
    /// Reads /proc/stat, see proc(5): user, nice, system, idle, iowait, irq, softirq, steal; what follows is part
    /// of user.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let times: Vec<f64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
        let idle = times.get(3)? + times.get(4)?;
        let processors = stat.lines().skip(1).take_while(|l| l.starts_with("cpu")).count();
        Some(Self { all: times.iter().sum(), idle, processors })
    }

    fn busy_since(self, before: Self) -> Option<f64> {
        let (all, idle) = (self.all - before.all, self.idle - before.idle);
        let busy = (1.0 - idle / all) * self.processors as f64;
        (all > 0.0).then(|| (busy.max(0.0) * 10.0).round() / 10.0)
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

    #[test]
    fn busy_processors_are_those_that_were_not_idle() {
        let at = |line| format!("cpu  {line}\ncpu0 1 2 3\ncpu1 4 5 6\nintr 7\n");
        // of 400 ticks 100 idle and 50 waiting for a disk; what follows steal is counted in user already
        let before = Ticks::parse(&at("1000 5 300 5000 20 0 5 0 7 0")).unwrap();
        let after = Ticks::parse(&at("1150 5 350 5100 70 10 15 30 99 0")).unwrap();
        assert_eq!(after.busy_since(before), Some(1.3)); // 2 * (1 - 150 / 400) = 1.25
        assert_eq!(before.busy_since(before), None);
        assert!(Ticks::parse("").is_none() && Ticks::parse("cpu  1 2 x 3 4").is_none());
        assert_eq!(busy_processors(String::new), None);
    }
}
