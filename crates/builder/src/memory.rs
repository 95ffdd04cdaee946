//! Memory of this machine, and how the C library's allocator deals with what is freed.

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
