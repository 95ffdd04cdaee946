//! A limit on what a test may allocate, by whatever allocator, in Rust or in C++.

/// What a reader may use besides as many bytes as the file has: messages, tables of names, a page table.
pub const CONSTANT: u64 = 4 << 20;

/// Address space that this process has now, in bytes.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|l| l.strip_prefix("VmSize:")).expect("a size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Sets the limit on address space and gives the one of before.
fn set_limit(bytes: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a limit of this frame, for reading and for writing.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    assert_eq!(status, 0);
    let before = limit.rlim_cur;
    limit.rlim_cur = bytes.min(limit.rlim_max);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    before
}

/// Runs `body` with no more address space than the process has now and `bytes` on top. What asks for more fails as it
/// does on a full machine: in Rust the process aborts, so let nothing else run in a test program that uses this, and
/// print what comes next (`cargo test -- --nocapture` then shows which it was).
pub fn limited<T>(bytes: u64, body: impl FnOnce() -> T) -> T {
    let before = set_limit(address_space() + bytes);
    let result = body();
    set_limit(before);
    result
}
