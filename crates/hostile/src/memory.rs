//! A limit on what a test may allocate, by whatever allocator, in Rust or in C++.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a reader may use besides as many bytes as the file has: messages, tables of names, a page table.
pub const CONSTANT: u64 = 4 << 20;

/// Address space that this process has now.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

/// Runs `body` with no more address space than the process has now and `bytes` on top. What asks for more fails as it
/// does on a full machine: in Rust the process aborts, so let nothing else run in a test program that uses this, and
/// print what comes next (`cargo test -- --nocapture` then shows which it was).
pub fn limited<T>(bytes: u64, body: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::As);
    let limit = Some(address_space() + bytes);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: before.maximum })
        .expect("a limit below the maximum");
    let result = body();
    setrlimit(Resource::As, before).expect("the limit of before");
    result
}
