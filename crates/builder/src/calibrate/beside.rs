//! The calibration that a build makes for itself and keeps beside its output.

use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;
use llama::{Backend, Model, ModelParams};
use program::{Interrupt, Reporter};

use super::{CalibrationJob, check, contexts, make, own_text, texts, tokens_of};
use crate::{Error, MakesCalibration, Source};

/// A calibration that a build makes on the text of a [`CalibrationJob`]. The job's output, and whether it may be replaced,
/// are those of the calibration.
pub struct BesideOutput {
    job: CalibrationJob,
    /// Whether there will be an output to keep it beside.
    is_kept: bool,
}

impl BesideOutput {
    /// The calibration of `job` for the build of `output`; `None` in a dry run.
    #[must_use]
    pub fn new(job: CalibrationJob, output: Option<&Path>) -> Self {
        let path = |output: &Path| output.with_extension("calib.gguf");
        let is_kept = output.is_some();
        Self {
            job: CalibrationJob { output: output.map_or_else(PathBuf::new, path), ..job },
            is_kept,
        }
    }

    /// The job for `source`, with contexts that the model can have; `text_only` if the text is enough.
    fn job(&self, source: &Source, text_only: bool) -> Result<CalibrationJob, Error> {
        let limit = source.model().map_err(|e| Error::cannot_run(&e))?.n_ctx_train();
        Ok(CalibrationJob {
            ctx: self.job.ctx.min(limit),
            tokens_only: text_only,
            ..self.job.clone()
        })
    }

    /// Whether `found` is what would be made, as far as its text tells.
    fn has_same_text(&self, found: &Calibration, source: &Source) -> anyhow::Result<bool> {
        let (job, found) = (self.job(source, true)?, found.provenance());
        let n_tokens = job.n_tokens(source);
        let model = source.model()?;
        if (found.n_ctx as usize, found.seed) != (job.ctx, job.seed) {
            return Ok(false);
        }
        let Some(text) = texts::read(&job, source.file(), model)? else {
            let n_wanted = n_tokens / job.ctx * job.ctx;
            return Ok(own_text::is_own(found, 0) && found.tokens.len() == n_wanted);
        };
        let contexts = contexts(&job, n_tokens, &text, model.bos())?;
        Ok(found.tokens == tokens_of(&contexts, &text.tokens, model.bos()))
    }
}

fn failed(error: &anyhow::Error) -> Error {
    Error::Calibrating(format!("{error:#}"))
}

impl MakesCalibration for BesideOutput {
    fn path(&self) -> Option<&Path> {
        self.is_kept.then_some(&*self.job.output)
    }

    fn texts(&self) -> Vec<(&'static str, &Path)> {
        check::texts(&self.job).collect()
    }

    fn check(&self, source: &Source, text_only: bool) -> Result<(), Error> {
        let check = || -> anyhow::Result<()> {
            let job = self.job(source, text_only)?;
            check::texts_can_be_read(&job)?;
            if self.is_kept {
                check::source(&job, source)?;
            }
            let model = source.model()?;
            check::model(&job, source, model)?;
            // What a text lacks shows when it is read, which takes no time beside that of a build.
            if let Some(text) = texts::read(&job, source.file(), model)? {
                contexts(&job, job.n_tokens(source), &text, model.bos())?;
            }
            Ok(())
        };
        check().map_err(|e| failed(&e))
    }

    fn find(
        &self,
        source: &Source,
        tensors: &[MatrixId],
        text_only: bool,
    ) -> Result<Option<Calibration>, Error> {
        let Some(path) = self.path().filter(|path| path.symlink_metadata().is_ok()) else {
            return Ok(None);
        };
        let fits = |found: &Calibration| {
            let model = &found.provenance().model;
            let is_of_model =
                || source.model_id(model.sha256.clone()).is_ok_and(|own| own == *model);
            let sites = source.run_through(tensors);
            let covers = || sites.sites().iter().all(|site| found.covers(site.input));
            let same_text = || self.has_same_text(found, source).unwrap_or(false);
            is_of_model() && (text_only || covers()) && same_text()
        };
        match Calibration::open(path).ok().filter(fits) {
            Some(found) => Ok(Some(found)),
            None if self.job.force => Ok(None),
            None => Err(self.in_the_way()),
        }
    }

    fn may_be_replaced(&self) -> bool {
        self.job.force
    }

    fn in_the_way(&self) -> Error {
        Error::Calibrating(format!(
            "{}: is there and is not the calibration that this build would make: give it with --calib, move it away, \
             or replace it with --force",
            self.job.output.display()
        ))
    }

    fn make(
        &self,
        source: &Source,
        sha256: &str,
        text_only: bool,
        watch: (&Reporter, &Interrupt),
    ) -> Result<(), Error> {
        let make = || -> anyhow::Result<()> {
            let job = self.job(source, text_only)?;
            let lengths = check::source(&job, source)?;
            let model = Model::load(Backend::init(), &job.model, &ModelParams::default())?;
            let given = texts::read(&job, source.file(), &model)?;
            make((&job, source, &model), (None, given), (&lengths, sha256), watch).map(drop)
        };
        let made = make();
        if watch.1.is_set() { Err(Error::Stopped) } else { made.map_err(|e| failed(&e)) }
    }

    fn describe(&self, source: &Source) -> String {
        let n_tokens = self.job.n_tokens(source);
        match self.job.file.len() {
            0 => format!("about {n_tokens} tokens that the model writes itself"),
            _ => format!("at most {n_tokens} tokens of -f"),
        }
    }
}
