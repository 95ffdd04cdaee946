//! A calibration as a build uses it: opened, known to fit the model, read once from end to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calibration::{Calibration, ModelId};
use format::{MatrixId, Width};
use program::{Interrupt, Reporter};

use crate::{Error, Importance, Method, Shaping, Source};

impl Source {
    /// What calibrations know this model by, where `sha256` is the hash of its file.
    ///
    /// # Errors
    /// [`Error::Inspect`] if the file does not name its architecture, [`Error::Model`] for dimensions that no
    /// calibration can hold.
    pub fn model_id(&self, sha256: String) -> Result<ModelId, Error> {
        let count = |n: usize| {
            u32::try_from(n).map_err(|_| Error::Model {
                path: self.file().path().to_owned(),
                reason: format!("has a dimension of {n}: too large to be calibrated"),
            })
        };
        let longest = |width| {
            let inputs = self.map().matrices().filter(|matrix| matrix.id.role.d_in() == width);
            count(inputs.map(|matrix| matrix.shape.d_in).max().unwrap_or(0))
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

/// Where the calibration of a build comes from.
pub enum CalibrationSource {
    /// A file of the user.
    File(PathBuf),
    /// The build makes it.
    Made(Box<dyn MakesCalibration>),
}

/// Makes the calibration of a build as its first step, and keeps it beside the output.
pub trait MakesCalibration {
    /// Where it is kept; `None` if nothing is made, in a dry run.
    fn path(&self) -> Option<&Path>;

    /// The files that it is made from besides the model, with their flags.
    fn texts(&self) -> Vec<(&'static str, &Path)>;

    /// Checks everything that can be known before it is made for `source`; `text_only` if nobody needs what the model sees
    /// on the text.
    ///
    /// # Errors
    /// [`Error::Calibrating`].
    fn check(&self, source: &Source, text_only: bool) -> Result<(), Error>;

    /// The calibration of an earlier build, if that is what would be made, with the inputs of `tensors` unless the text is
    /// enough. Whether it is of this very model takes the hash of the model's file: [`Calibration::check_model`].
    ///
    /// # Errors
    /// [`Self::in_the_way`] if something else is there and may not be replaced.
    fn find(
        &self,
        source: &Source,
        tensors: &[MatrixId],
        text_only: bool,
    ) -> Result<Option<Calibration>, Error>;

    /// Whether another file in its place may be replaced.
    fn may_be_replaced(&self) -> bool;

    /// Another file is in its place.
    fn in_the_way(&self) -> Error;

    /// Makes it for `source`, whose file has the hash `sha256`.
    ///
    /// # Errors
    /// [`Error::Calibrating`], or [`Error::Stopped`].
    fn make(
        &self,
        source: &Source,
        sha256: &str,
        text_only: bool,
        watch: (&Reporter, &Interrupt),
    ) -> Result<(), Error>;

    /// What it is made on.
    fn describe(&self, source: &Source) -> String;
}

/// Whether `method` needs nothing but the text of a calibration.
pub(crate) fn needs_text_only(method: &dyn Method) -> bool {
    method.sequence().is_some_and(|sequence| sequence.needs_text_only())
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
    calibration.check_model(&source.model_id(calibration.provenance().model.sha256.clone())?)?;
    if calibration.has_inputs() || !needs_text_only(method) {
        let map = source.run_through(tensors);
        map.sites().iter().try_for_each(|site| calibration.check_covers(site.input))?;
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
    let mut all = BTreeMap::new();
    for site in source.run_through(tensors).sites() {
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        let mean_squares = calibration.input(site.input)?.mean_squares();
        for matrix in &site.matrices {
            let (found, d_in) = (mean_squares.len(), matrix.shape.d_in);
            if found != d_in {
                return Err(use_error(format!(
                    "the inputs of {} have {found} values, not {d_in}: made for another model",
                    matrix.id
                )));
            }
            let importance = Importance::new(&matrix.id.weight(), &mean_squares, shaping);
            all.insert(matrix.id, importance.map_err(use_error)?);
            reporter.advance(1);
        }
    }
    Ok(all)
}
