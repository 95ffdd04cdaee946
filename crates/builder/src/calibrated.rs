//! A calibration as a build uses it: opened, known to fit the model, read once from end to end.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::{Calibration, ModelId};
use codec::Progress;
use format::{InputId, MatrixId, Width};

use crate::{Error, Importance, Interrupt, Method, Reporter, Shaping, Source};

impl Source {
    /// What calibrations know this model by, where `sha256` is the hash of its file.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the file does not name its architecture, [`Error::Model`] for dimensions that no
    /// calibration can hold.
    pub fn model_id(&self, sha256: String) -> Result<ModelId, Error> {
        let count = |n: usize| {
            u32::try_from(n).map_err(|_| Error::Model {
                path: self.file().path().to_owned(),
                reason: format!("has a dimension of {n}: too large to be calibrated"),
            })
        };
        let longest = |width| {
            let inputs = self.matrices().filter(|matrix| matrix.role.d_in() == width);
            count(inputs.map(|matrix| self.shape(matrix).d_in).max().unwrap_or(0))
        };
        Ok(ModelId {
            sha256,
            architecture: self.file().architecture()?,
            n_layer: count(self.n_layers())?,
            n_embd: longest(Width::Embedding)?,
            n_ff: longest(Width::Ffn)?,
        })
    }
}

/// Opens the calibration at `path` and checks that it covers the inputs of `tensors` of a model such as
/// `source`, if `method` needs them and text runs through them. Whether it is this very model needs the hash of the file:
/// [`Calibration::check_model`].
///
/// # Errors
/// [`Error::Calibration`], or as [`Source::model_id`].
pub(crate) fn open_calibration(
    path: &Path,
    source: &Source,
    tensors: &[MatrixId],
    method: &dyn Method,
) -> Result<Calibration, Error> {
    let calibration = Calibration::open(path)?;
    calibration.check_model(&source.model_id(calibration.record().model.sha256.clone())?)?;
    if calibration.has_inputs() || !method.needs_text_only() {
        let mut seen = tensors.iter().filter(|tensor| !source.is_mtp(**tensor));
        seen.try_for_each(|tensor| calibration.check_covers(*tensor))?;
    }
    Ok(calibration)
}

/// Reads everything that `calibration` holds about the inputs of `tensors`, so that damage is found before
/// the long work, and returns their importance, where text runs through them.
///
/// # Errors
/// [`Error::Calibration`], [`Error::CalibrationUse`] or [`Error::Stopped`].
pub(crate) fn read_importance(
    calibration: &Calibration,
    source: &Source,
    tensors: &[MatrixId],
    shaping: Shaping,
    (reporter, interrupt): (&Reporter, &Interrupt),
) -> Result<BTreeMap<MatrixId, Importance>, Error> {
    reporter.stage("reading the calibration", tensors.len() as u64);
    let use_error = |reason| Error::CalibrationUse { path: calibration.path().to_owned(), reason };
    // Gate and up share their input, and follow each other.
    let mut last: Option<(InputId, Vec<f32>)> = None;
    let mut all = BTreeMap::new();
    for &tensor in tensors.iter().filter(|tensor| !source.is_mtp(**tensor)) {
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        let input = tensor.input();
        let mean_squares = match last.take() {
            Some((known, mean_squares)) if known == input => mean_squares,
            _ => calibration.input(tensor)?.mean_squares(),
        };
        let (found, d_in) = (mean_squares.len(), source.shape(tensor).d_in);
        if found != d_in {
            return Err(use_error(format!(
                "the inputs of {tensor} have {found} values, not {d_in}: made for another model"
            )));
        }
        let importance =
            Importance::new(&tensor.weight(), &mean_squares, shaping).map_err(use_error)?;
        all.insert(tensor, importance);
        last = Some((input, mean_squares));
        reporter.advance(1);
    }
    Ok(all)
}
