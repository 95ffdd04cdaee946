//! `tiny-transformer`: makes the data, trains the model, exports it.

mod cli;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

/// The program's name, as it starts messages.
const NAME: &str = env!("CARGO_PKG_NAME");

fn main() -> ExitCode {
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // The training has threads of its own; more of them inside of candle's products only wait for each other.
        // SAFETY: nothing else runs yet.
        unsafe { std::env::set_var(name, "1") };
    }
    program::keep_freed_memory();
    match run::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
