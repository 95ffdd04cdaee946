//! Requests to stop: SIGINT and SIGTERM end a build after the tensor in hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGBUS, SIGINT, SIGTERM};

/// Whether someone asked the program to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// Exit code after a request to stop: 128 + SIGINT, as shells expect.
pub const EXIT_INTERRUPTED: u8 = 130;

impl Interrupt {
    /// Catches SIGINT and SIGTERM from now on. A second signal ends the program at once, which loses
    /// no more than a kill does.
    ///
    /// # Errors
    /// Those of the system.
    pub fn install() -> std::io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // The order matters: on the first signal the flag is still unset when this one looks.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                i32::from(EXIT_INTERRUPTED),
                Arc::clone(&interrupt.0),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    /// Whether the program should stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if the program should stop, for loops that already return I/O errors.
    ///
    /// # Errors
    /// Of kind [`std::io::ErrorKind::Interrupted`].
    pub fn check(&self) -> std::io::Result<()> {
        if self.is_set() { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    /// Asks to stop, as a signal would.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Says `message` on stderr and exits with 1 when a mapped file is cut short by someone else, which the
/// system reports as SIGBUS at the next access.
///
/// # Errors
/// Those of the system.
pub fn explain_bus_errors(message: String) -> std::io::Result<()> {
    let action = move || {
        let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
        signal_hook::low_level::exit(1);
    };
    // SAFETY: the action only calls `write` and `_exit`, which are async-signal-safe; it neither
    // allocates (the message was made before) nor takes locks nor returns.
    unsafe { signal_hook::low_level::register(SIGBUS, action) }?;
    Ok(())
}
