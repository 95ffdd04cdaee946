//! What can be known of a calibration before a text is read and the model is run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use calibration::capture::{CaptureError, Contexts};
use format::{InputId, Site};
use llama::Model;
use program::{Selection, outputs};

use super::CalibrationJob;
use crate::{Source, prepare};

/// Checks that the files can be read, and the output be written.
pub(super) fn files(job: &CalibrationJob) -> Result<()> {
    let mut read: Vec<(&'static str, &Path)> = vec![("-m", &job.model)];
    read.extend(texts(job));
    outputs::check_distinct(&read, &[("-o", &job.output)])?;
    outputs::check_output(&job.output)?;
    match (job.output.symlink_metadata().is_ok(), job.resume) {
        (true, false) if !job.force => {
            let path = job.output.display();
            bail!("{path}: already exists: --resume adds to it, --force replaces it");
        }
        (false, true) => bail!("--resume: {}: there is no such calibration", job.output.display()),
        _ => {}
    }
    texts_can_be_read(job)
}

/// The texts, with their flag.
pub(super) fn texts(job: &CalibrationJob) -> impl Iterator<Item = (&'static str, &Path)> {
    job.file.iter().map(|path| ("-f", path.as_path()))
}

/// Checks that the texts are there.
pub(super) fn texts_can_be_read(job: &CalibrationJob) -> Result<()> {
    for path in &job.file {
        File::open(path).with_context(|| format!("{}: check the path", path.display()))?;
    }
    Ok(())
}

/// Checks that `source` can be calibrated; the lengths of the inputs to watch, none if the model is not to be run.
pub(super) fn source(job: &CalibrationJob, source: &Source) -> Result<BTreeMap<InputId, usize>> {
    let parts: Vec<_> = source.file().paths().map(|path| ("-m", path)).collect();
    outputs::check_distinct(&parts, &[("-o", &job.output)])?;
    // Which model it is takes its hash, whether it can be one that is calibrated does not.
    source.model_id(String::new())?;
    let lengths = inputs(job, source)?;
    check_room(job, job.n_tokens(source), &lengths)?;
    prepare::check_architecture(source)?;
    Ok(lengths)
}

/// Checks that `model` can have such contexts, and so few of them.
pub(super) fn model(job: &CalibrationJob, source: &Source, model: &Model) -> Result<()> {
    let limit = model.n_ctx_train();
    if !(16..=limit).contains(&job.ctx) {
        return Err(CaptureError::ContextLength { n_ctx: job.ctx, limit }.into());
    }
    // A text of any length would not do for so few tokens.
    Contexts::new(usize::MAX, job.n_tokens(source), job.ctx, false)?;
    Ok(())
}

/// The inputs to watch, those of the selected layers that text runs through, and their lengths; none if the model is not to be run.
fn inputs(job: &CalibrationJob, source: &Source) -> Result<BTreeMap<InputId, usize>> {
    if job.tokens_only {
        return Ok(BTreeMap::new());
    }
    let selection = Selection { layers: job.layers.clone(), ..Selection::default() };
    let selected = source.select(&selection)?;
    if let (Some(layers), true) = (&job.layers, selected.iter().any(|t| source.is_mtp(*t))) {
        let mtp = source.describe_mtp();
        bail!("--layers {layers}: no text runs through {mtp}: leave them out");
    }
    let length = |site: &Site| match site.d_in() {
        Some(d) => Ok((site.input, d)),
        None => bail!(
            "{}: the matrices of {} have inputs of different lengths: this model cannot be calibrated",
            job.model.display(),
            site.input
        ),
    };
    source.run_through(&selected).sites().iter().map(length).collect()
}

/// Checks that the file system of the output takes it and has room for it.
fn check_room(
    job: &CalibrationJob,
    n_tokens: usize,
    inputs: &BTreeMap<InputId, usize>,
) -> Result<()> {
    let planned =
        |&d| calibration::planned_bytes(d, job.max_h_dim, job.max_samples, job.max_holdout);
    // The tokens, and what is about them.
    let text = 4 * n_tokens as u64;
    let needed = inputs.values().map(planned).fold(text, u64::saturating_add);
    Ok(outputs::check_space(&job.output, needed, needed)?)
}
