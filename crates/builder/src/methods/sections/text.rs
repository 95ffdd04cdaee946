//! What steps that run the model with gradients or beside itself have in common: their text, and what can be refused at
//! the start.

use std::path::Path;

use calibration::{Calibration, PassageKind, passage_kind};
use format::ModelMap;
use llama::Model;
use whole_model::{Outline, Stream, TuningError};

use crate::{Error, Source};

/// The error of the step behind `flag`.
pub(super) fn failed(flag: &'static str) -> impl Fn(TuningError) -> Error {
    move |error| match error {
        TuningError::Stopped => Error::Stopped,
        other => Error::flag(flag, other.to_string()),
    }
}

/// Checks all that can be known of the step behind `flag` before it is begun; `needed` tells the bytes of memory that the
/// step takes at least.
///
/// # Errors
/// [`Error::Program`] with `flag`.
pub(super) fn check_step(
    flag: &'static str,
    (source, calibration): (&Source, Option<&Calibration>),
    needed: impl FnOnce(&Outline) -> u64,
) -> Result<(), Error> {
    calibration.map_or(Ok(()), |calibration| check_text(flag, calibration))?;
    let refuse = |error: TuningError| Error::flag(flag, format!("{error}: leave out {flag}"));
    let model = Outline::of(source.file()).map_err(refuse)?;
    if let Some(calibration) = calibration {
        let tokens = &calibration.provenance().tokens;
        model.check_tokens(tokens).map_err(|e| made_for_another(flag, calibration, &e))?;
    }
    check_memory(flag, needed(&model))
}

/// `calibration` has tokens that the model does not have.
fn made_for_another(flag: &'static str, calibration: &Calibration, error: &TuningError) -> Error {
    let path = calibration.path().display();
    Error::flag(flag, format!("{path}: {error}: made for another model"))
}

/// Checks that a step that needs so many bytes at least is not begun where there are fewer.
pub(super) fn check_memory(flag: &'static str, needed: u64) -> Result<(), Error> {
    let there = program::memory_bytes();
    if needed <= there {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let reason = format!(
        "needs at least {:.1} GB of memory, this machine has {:.1} with its swap space: leave it out, or take a \
         larger machine",
        gb(needed),
        gb(there)
    );
    Err(Error::flag(flag, reason))
}

/// Checks that `calibration` holds the text it was made from.
pub(super) fn check_text(flag: &'static str, calibration: &Calibration) -> Result<(), Error> {
    if !calibration.provenance().tokens.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "{} does not hold the tokens it was made from: make it again with statecells-calib",
        calibration.path().display()
    );
    Err(Error::flag(flag, reason))
}

/// Checks that llama.cpp can run the layers of `map` one by one for the step behind `flag`, and that the model has the
/// tokens of `calibration`. `further` checks what else the step needs, and `way_out` ends the message.
pub(super) fn check_layers(
    (flag, way_out): (&'static str, &str),
    (source, calibration): (&Source, Option<&Calibration>),
    map: &ModelMap,
    further: impl FnOnce(&Model) -> Result<(), TuningError>,
) -> Result<(), Error> {
    let check = || -> Result<(), TuningError> {
        let (model, tokens) = (source.model()?, calibration.map(|c| &*c.provenance().tokens));
        whole_model::check(model, map, tokens.unwrap_or_default())?;
        further(model)
    };
    check().map_err(|e| match (e, calibration) {
        (e @ TuningError::Token { .. }, Some(c)) => made_for_another(flag, c, &e),
        (other, _) => Error::flag(flag, format!("{other}: {way_out}")),
    })
}

/// The text behind `calibration` before the first layer of `source`, with hidden states in `folder`.
pub(super) fn stream<'a>(
    source: &'a Source,
    calibration: &Calibration,
    folder: &Path,
) -> Result<Stream<'a>, TuningError> {
    let model = (source.model()?, source.file(), source.map());
    let contexts = contexts(calibration).map(|(kind, context)| (kind, context.to_vec()));
    Stream::new(model, contexts, folder, rayon::current_num_threads())
}

/// All contexts behind `calibration`, in order.
pub(super) fn contexts(calibration: &Calibration) -> impl Iterator<Item = (PassageKind, &[i32])> {
    let provenance = calibration.provenance();
    let contexts = provenance.tokens.chunks_exact((provenance.n_ctx as usize).max(1)).enumerate();
    contexts.map(|(i, c)| (passage_kind(i), c))
}

/// Tokens as the model with gradients takes them.
pub(super) fn unsigned(context: &[i32]) -> Vec<u32> {
    context.iter().map(|t| t.unsigned_abs()).collect()
}
