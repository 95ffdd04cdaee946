//! One line instead of a crash when a mapped file is cut short by someone else.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the handler says.
static MESSAGE: OnceLock<String> = OnceLock::new();
/// Whether a thread has begun to say it.
static SAID: AtomicBool = AtomicBool::new(false);

/// Says `error` in the name of `tool` and exits with 1 when a mapped file is cut short, which the
/// system reports as SIGBUS at the next access. The first message given stays.
///
/// In place of the handlers that were there: that of Rust's runtime would return to the default action
/// before ours is through, and a second thread at the same place would kill the program by the signal.
///
/// # Errors
/// Those of the system.
pub fn explain_bus_errors(tool: &str, error: &impl std::fmt::Display) -> io::Result<()> {
    let _ = MESSAGE.set(format!("{tool}: error: {}\n", error));
    // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // Threads of Rust have a stack for handlers; theirs may be all there is left.
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: `action` is initialized, and `on_bus_error` is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Async-signal-safe: it loads atomics and calls `write`, `_exit` and `pause`, nothing else.
extern "C" fn on_bus_error(_signal: libc::c_int) {
    if SAID.swap(true, Ordering::Relaxed) {
        loop {
            // SAFETY: no preconditions. The thread that came first ends the program.
            unsafe { libc::pause() };
        }
    }
    let message = MESSAGE.get().map_or("", String::as_str);
    // SAFETY: the bytes are those of a string that lives forever.
    unsafe { libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len()) };
    // SAFETY: no preconditions.
    unsafe { libc::_exit(1) }
}
