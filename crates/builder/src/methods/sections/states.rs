//! `--keep-states`: the source's hidden states beside the output, so that the next build on the same text need not run the
//! source again.

use std::io;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use program::outputs;
use sha2::{Digest, Sha256};
use whole_model::{Identity, KeptShape, KeptStates};

use crate::{Error, Source};

/// The flag that asks for it.
const FLAG: &str = "--keep-states";

/// Where the states of a build of `output` are kept.
///
/// # Errors
/// [`Error::Program`] if that is the output's own name.
pub fn path(output: &Path) -> Result<PathBuf, Error> {
    let path = output.with_extension("states");
    if path == output {
        return Err(Error::flag(
            FLAG,
            "would be kept in the file of -o: give that another extension",
        ));
    }
    Ok(path)
}

/// Checks what can be known of the file at `path` before the work; the calibration may be still to be made.
///
/// # Errors
/// [`Error::Program`] for a file that holds something else, or where there is no room.
pub(super) fn check(
    path: &Path,
    source: &Source,
    calibration: Option<&Calibration>,
) -> Result<(), Error> {
    outputs::check_output(path)?;
    let Some(calibration) = calibration else { return shape_of(source, (1, 1)).map(drop) };
    if path.symlink_metadata().is_ok() {
        return open(path, source, calibration).map(drop);
    }
    let n_bytes = shape(source, calibration)?.n_bytes().ok_or_else(|| {
        Error::flag(FLAG, "the text is too long: give less of it, or leave the flag out")
    })?;
    Ok(outputs::check_space(path, n_bytes, n_bytes)?)
}

/// The states at `path`, of which those of a new file are still empty.
///
/// # Errors
/// As [`check`].
pub(super) fn open(
    path: &Path,
    source: &Source,
    calibration: &Calibration,
) -> Result<KeptStates, Error> {
    let opened = KeptStates::open(path, &identity(calibration), shape(source, calibration)?);
    opened.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => {
            let path = path.display();
            let reason = format!(
                "{path} is not of this model, text and machine: remove it, or leave the flag out"
            );
            Error::flag(FLAG, reason)
        }
        _ => program::io(path, "write")(e).into(),
    })
}

fn shape(source: &Source, calibration: &Calibration) -> Result<KeptShape, Error> {
    let provenance = calibration.provenance();
    let n_ctx = (provenance.n_ctx as usize).max(1);
    shape_of(source, (provenance.tokens.len() / n_ctx, n_ctx))
}

fn shape_of(source: &Source, (n_contexts, n_ctx): (usize, usize)) -> Result<KeptShape, Error> {
    let model = source.model().map_err(|e| Error::cannot_run(&e))?;
    KeptShape::of(model, n_contexts, n_ctx)
        .map_err(|e| Error::flag(FLAG, format!("{e}: leave the flag out")))
}

/// Everything that the source's states follow from: model, text, and what computes them.
fn identity(calibration: &Calibration) -> Identity {
    let provenance = calibration.provenance();
    let mut hash = Sha256::new();
    for text in [&*provenance.model.sha256, &*whole_model::machine(), &*ggml::version_line("")] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.update(provenance.n_ctx.to_le_bytes());
    provenance.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().into()
}
