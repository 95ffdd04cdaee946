//! Programs under a kernel that refuses some calls, as file systems do that lack an operation.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A call that fails.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Its number: `SYS_...`.
    pub call: libc::c_long,
    /// What it fails with: `E...`.
    pub error: i32,
    /// Number of an argument, from 0, and what it must exceed; every call fails without it.
    pub above: Option<(u32, u32)>,
}

impl Refusal {
    /// Every `call` fails with `error`.
    #[must_use]
    pub fn of(call: libc::c_long, error: i32) -> Self {
        Self { call, error, above: None }
    }
}

/// Makes the calls of `refusals` fail in the program that `command` starts, and in those that it starts.
///
/// # Panics
/// When the program is started, if the kernel has no filters for system calls.
pub fn refuse(command: &mut Command, refusals: &[Refusal]) {
    const MODE: libc::c_ulong = libc::SECCOMP_MODE_FILTER as libc::c_ulong;
    const ONE: libc::c_ulong = 1;
    const NONE: libc::c_ulong = 0;
    let filter = filter(refusals);
    let install = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).expect("few instructions"),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the filter is valid and outlives the call, which copies it.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, ONE, NONE, NONE, NONE) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, MODE, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: what runs between fork and exec is system calls on memory that is there already.
    unsafe { command.pre_exec(install) };
}

/// The program of the kernel's filter, see seccomp(2): every refusal in turn, then everything else is allowed.
fn filter(refusals: &[Refusal]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// Where the arguments are in `struct seccomp_data`, eight bytes each, the lower half first.
    const ARGUMENTS: u32 = 16;
    let step = |code: u32, k: u32, if_not: u8| libc::sock_filter {
        code: u16::try_from(code).expect("a code of 16 bits"),
        jt: 0,
        jf: if_not,
        k,
    };
    let mut filter = Vec::new();
    for Refusal { call, error, above } in refusals {
        let number = u32::try_from(*call).expect("numbers are small");
        // Past what follows, if it is another call.
        let rest = if above.is_some() { 3 } else { 1 };
        filter.extend([step(LOAD, 0, 0), step(IF_EQUAL, number, rest)]);
        if let Some((argument, least)) = above {
            filter.extend([step(LOAD, ARGUMENTS + 8 * argument, 0), step(IF_ABOVE, *least, 1)]);
        }
        let error = libc::SECCOMP_RET_ERRNO | error.unsigned_abs();
        filter.push(step(RETURN, error, 0));
    }
    filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    filter
}
