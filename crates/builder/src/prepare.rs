//! Checks before the long work, so that it does not fail at its end.

use std::path::Path;

use program::outputs::check_space;
use program::{Interrupt, Reporter};

use crate::{Error, Plan, Source};

/// Checks that the llama.cpp that coded files are for knows the architecture of `source`.
///
/// # Errors
/// [`Error::Model`].
pub fn check_architecture(source: &Source) -> Result<(), Error> {
    let name = source.file().architecture()?;
    if llama::knows_architecture(&name) {
        return Ok(());
    }
    let reason = format!(
        "the architecture '{}' is unknown to this program's {}, so that nothing could run the file: a newer version \
         may know it",
        name.escape_debug(),
        ggml::LLAMA_CPP_VERSION
    );
    Err(Error::Model { path: source.file().path().to_owned(), reason })
}

/// What takes room beside the bytes of the source.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Whether dense weights stay beside the codes.
    pub keep_dense: bool,
    /// Checkpoints of every coded tensor.
    pub n_checkpoints: u64,
}

/// Checks that the file system of `output` has room for the checkpoints and the output of `plan`.
///
/// # Errors
/// As [`check_space`].
pub fn check_room(output: &Path, source: &Source, plan: &Plan, room: &Room) -> Result<(), Error> {
    let totals = plan.totals();
    let replaced = if room.keep_dense { 0 } else { totals.source_bytes };
    let output_bytes = source.n_bytes().saturating_sub(replaced) + totals.coded_bytes;
    let checkpoints = totals.coded_bytes.saturating_mul(room.n_checkpoints);
    Ok(check_space(output, output_bytes, output_bytes.saturating_add(checkpoints))?)
}

/// Checks that every weight of the plan is finite: a damaged model is refused in seconds, not after hours.
///
/// # Errors
/// [`Error::Codec`] with the tensor and the position, or [`Error::Stopped`].
pub fn check_weights(
    source: &Source,
    plan: &Plan,
    reporter: &Reporter,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let stage = reporter.bytes("checking the weights", plan.totals().source_bytes);
    for item in &plan.items {
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        source.weights(item.tensor)?;
        stage.advance(item.source_bytes);
    }
    Ok(())
}
