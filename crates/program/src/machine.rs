//! What this machine tells about itself, and how the C library's allocator deals with what is freed.

#[cfg(target_os = "linux")]
use procfs::{Current, CurrentSI};

/// Name of the processor; `None` where the system does not tell.
#[must_use]
pub fn processor() -> Option<String> {
    #[cfg(target_os = "linux")]
    return procfs::CpuInfo::current().ok()?.model_name(0).map(str::to_owned);
    #[cfg(not(target_os = "linux"))]
    None
}

/// Bytes of memory of the machine without swap space; `None` where the system does not tell.
#[must_use]
pub fn ram_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(procfs::Meminfo::current().ok()?.mem_total);
    #[cfg(not(target_os = "linux"))]
    None
}

/// Bytes of memory that programs may still take; `None` where the system does not tell.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return procfs::Meminfo::current().ok()?.mem_available;
    #[cfg(not(target_os = "linux"))]
    None
}

/// Peak resident memory of the running process `pid` so far, bytes; `None` where the system does not tell.
#[must_use]
pub fn peak_bytes(pid: i32) -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(1024 * procfs::process::Process::new(pid).ok()?.status().ok()?.vmhwm?);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// Time since the start of the machine, over all processors, in one unit.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// All of it.
    pub all: u64,
    /// Idle, or waiting for a disk.
    pub idle: u64,
    /// Number of processors.
    pub processors: usize,
}

impl Ticks {
    /// The time now; `None` where the system does not tell.
    #[must_use]
    pub fn now() -> Option<Self> {
        #[cfg(target_os = "linux")]
        {
            let stat = procfs::KernelStats::current().ok()?;
            let t = &stat.total;
            let or_0 = |time: Option<u64>| time.unwrap_or(0);
            let idle = t.idle + or_0(t.iowait);
            // The time of guests is part of user's.
            let busy = t.user + t.nice + t.system + or_0(t.irq) + or_0(t.softirq) + or_0(t.steal);
            Some(Self { all: idle + busy, idle, processors: stat.cpu_time.len() })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Processors that were busy on average since `before`, in tenths; `None` if no time has passed.
    #[must_use]
    pub fn busy_since(self, before: Self) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)? as f64;
        let idle = self.idle.saturating_sub(before.idle) as f64;
        let busy = (1.0 - idle / all) * self.processors as f64;
        Some((busy.max(0.0) * 10.0).round() / 10.0)
    }
}

/// Bytes of memory that programs of this machine can have together, swap space included: more is never there.
#[must_use]
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let units = u64::from(info.mem_unit.max(1));
    // The fields are as wide as a register.
    #[allow(clippy::useless_conversion, reason = "not on every platform")]
    let (ram, swap) = (u64::from(info.totalram), u64::from(info.totalswap));
    ram.saturating_add(swap).saturating_mul(units)
}

/// Lets the allocator keep what is freed instead of handing it back to the system.
///
/// For work that makes and drops large arrays without end, as tuning and training do: every one of them would be
/// mapped, zeroed page by page and unmapped, which takes a third of the time. Does nothing where
/// the allocator is not glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// What the heap grows by at least, bytes.
        const TOP_PAD: libc::c_int = 256 << 20;
        let settings = [
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, TOP_PAD),
        ];
        for (parameter, value) in settings {
            // SAFETY: mallopt takes any pair of integers, locks the allocator itself and refuses what it does
            // not know by returning 0; then things stay as they were.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_processors_are_those_that_were_not_idle() {
        let at = |all, idle| Ticks { all, idle, processors: 2 };
        // of 400 ticks 150 idle: 2 * (1 - 150 / 400) = 1.25
        assert_eq!(at(1400, 650).busy_since(at(1000, 500)), Some(1.3));
        assert_eq!(at(7, 3).busy_since(at(7, 3)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_tells() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(peak_bytes(own).unwrap() > 1 << 20 && peak_bytes(i32::MAX).is_none());
        let ram = ram_bytes().unwrap();
        assert!(available_bytes().unwrap() <= ram && ram <= memory_bytes());
        let now = Ticks::now().unwrap();
        assert!(now.idle <= now.all && now.processors > 0);
    }
}
