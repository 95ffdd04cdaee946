//! Requests to stop: SIGINT and SIGTERM end a build after the tensor in hand.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::printable;

/// Whether someone asked the program to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// Exit code after a request to stop: 128 + SIGINT, as shells expect.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Tells the user of `name` how its work ended, and the exit code; `is_stop` says which errors are requests to stop.
pub fn conclude<E: std::fmt::Display>(
    name: &str,
    done: Result<ExitCode, E>,
    is_stop: impl FnOnce(&E) -> bool,
) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(stop) if is_stop(&stop) => {
            eprintln!("{name}: {stop:#}");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(error) => {
            // Errors quote files: what is in them must not get to the terminal as it is.
            eprintln!("{name}: error: {}", printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

impl Interrupt {
    /// Catches SIGINT and SIGTERM from now on; `notice` tells the user what follows the first one. A second
    /// signal ends the program at once, which loses no more than a kill does.
    ///
    /// # Errors
    /// Those of the system.
    pub fn install(notice: String) -> std::io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        // A file that grows beyond the limit of the process is an error of the write, not the end of the program.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.0);
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if flag.swap(true, Ordering::Relaxed) {
                    signal_hook::low_level::exit(i32::from(EXIT_INTERRUPTED));
                }
                eprintln!("{notice}; a second signal stops at once");
            }
        });
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
}
