//! Making a calibration: a model runs on a text, and what its matrices see is written down.

mod summary;
mod texts;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use calibration::capture::{Capture, CaptureError, CaptureParams, Plan, Timing};
use calibration::{CalibratedInput, CalibrationError, PassageKind, Record, TextSketch};
use format::{InputId, Site};
use llama::{Backend, Model, ModelParams, Token};
use program::files::Unfinished;
use program::progress::{Eta, duration};
use program::{Interrupt, LayerList, Reporter, Selection, outputs};

use self::summary::PlainTime;
use crate::error::watch;
use crate::{Source, prepare};

/// Lines of progress on plain output.
const PROGRESS_LINES: usize = 16;

/// The user or the system asked the program to stop.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted: nothing was written, run the same command again")
    }
}

impl std::error::Error for Stopped {}

/// A calibration to be made.
#[derive(Clone, Debug)]
pub struct CalibrationJob {
    /// Name of the program and its version.
    pub tool: (&'static str, &'static str),
    /// Model to run.
    pub model: PathBuf,
    /// Texts, one after the other.
    pub file: Vec<PathBuf>,
    /// File to write.
    pub output: PathBuf,
    /// Whether all texts are conversations, whatever they are called.
    pub chat: bool,
    /// Tokens to run, at most.
    pub tokens: usize,
    /// Tokens per context.
    pub ctx: usize,
    /// Whether the contexts are written down without running the model.
    pub tokens_only: bool,
    /// Inputs to keep where no moment is formed, at most.
    pub max_samples: u64,
    /// Held-out inputs to keep of every site, at most.
    pub max_holdout: u64,
    /// Longest input of which a moment is formed.
    pub max_h_dim: usize,
    /// Layers; `None` for all that text runs through.
    pub layers: Option<LayerList>,
    /// Threads.
    pub n_threads: usize,
    /// Seed that chooses which inputs are kept.
    pub seed: u64,
    /// Contexts that are run without watching as well, to compare the time.
    pub time_plain: usize,
    /// Whether an existing output may be replaced.
    pub force: bool,
}

/// Does what `job` says, and prints a summary.
///
/// # Errors
/// [`Stopped`], or in one line what is in the way.
pub fn run(job: &CalibrationJob) -> Result<()> {
    let (name, _) = job.tool;
    let interrupt = watch(name, "stopping, nothing will be written", &job.model)?;
    rayon::ThreadPoolBuilder::new().num_threads(job.n_threads).build_global()?;
    let reporter = Reporter::new();
    let result = calibrate(job, &interrupt, &reporter);
    reporter.finish();
    match result {
        Err(_) if interrupt.is_set() => Err(Stopped.into()),
        result => result,
    }
}

/// What a run starts from.
struct Start {
    source: Source,
    /// Lengths of the inputs to watch; none if the model is not to be run.
    lengths: BTreeMap<InputId, usize>,
    model: Model,
}

/// Checks everything that can be known before the text is read and the model is run.
fn check(job: &CalibrationJob) -> Result<Start> {
    check_files(job)?;
    let source = Source::open(&job.model)?;
    let parts: Vec<_> = source.file().paths().map(|path| ("-m", path)).collect();
    outputs::check_distinct(&parts, &[("-o", &job.output)])?;
    // Which model it is takes its hash, whether it can be one that is calibrated does not.
    source.model_id(String::new())?;
    let lengths = inputs(job, &source)?;
    check_room(job, &lengths)?;
    prepare::check_architecture(&source)?;
    let model = Model::load(Backend::init(), &job.model, &ModelParams::default())?;
    check_context(job, &model)?;
    // A text of any length would not do for so few tokens.
    Plan::new(usize::MAX, job.tokens, job.ctx, false)?;
    Ok(Start { source, lengths, model })
}

fn check_files(job: &CalibrationJob) -> Result<()> {
    let mut read: Vec<(&'static str, &Path)> = vec![("-m", &job.model)];
    read.extend(job.file.iter().map(|path| ("-f", path.as_path())));
    outputs::check_distinct(&read, &[("-o", &job.output)])?;
    outputs::check_output(&job.output)?;
    if job.output.symlink_metadata().is_ok() && !job.force {
        bail!("{}: already exists: --force replaces it", job.output.display());
    }
    for path in &job.file {
        File::open(path).with_context(|| format!("{}: check the path", path.display()))?;
    }
    Ok(())
}

fn calibrate(job: &CalibrationJob, interrupt: &Interrupt, reporter: &Reporter) -> Result<()> {
    let Start { source, lengths, model } = check(job)?;
    if source.has_mtp() && !job.tokens_only {
        let mtp = source.describe_mtp();
        reporter.line(&format!("note: {mtp} are left out: no text runs through them"));
    }
    let (text, text_ids) = texts::read(job, source.file(), &model)?;
    let plan = Plan::new(text.tokens().len(), job.tokens, job.ctx, model.bos().is_some())?;
    warn_if_short(job, &plan, reporter);
    let model_id = source.model_id(source.sha256(reporter, interrupt)?)?;
    let stop = || interrupt.is_set();
    let run = Run { job, model: &model, plan: &plan, tokens: text.tokens(), reporter, stop: &stop };
    let seen = if lengths.is_empty() { Seen::default() } else { run.watch(&lengths)? };
    source.check_unchanged(&model_id.sha256, reporter, interrupt)?;
    let record = Record {
        model: model_id,
        texts: text_ids,
        sketch: TextSketch::of(plan.passages(text.tokens()).map(|(_, passage)| passage)),
        n_fitted: plan.n_tokens(PassageKind::Fitted) as u64,
        n_held_out: plan.n_tokens(PassageKind::HeldOut) as u64,
        n_ctx: u32::try_from(plan.n_ctx())?,
        tokens: contexts(&plan, text.tokens(), model.bos()),
        seed: job.seed,
        tool: format!("{} {}", job.tool.0, job.tool.1),
        llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
    };
    write(&job.output, &record, &seen.inputs, interrupt)?;
    let n_bytes = fs::metadata(&job.output).map_or(0, |m| m.len());
    reporter.finish();
    summary::print(&job.output, &plan, n_bytes, seen.times)?;
    Ok(())
}

/// The model and what it is to be run on.
struct Run<'a> {
    job: &'a CalibrationJob,
    model: &'a Model,
    plan: &'a Plan,
    tokens: &'a [Token],
    reporter: &'a Reporter,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// What was seen, and how long it took; nothing if the model was not run.
#[derive(Default)]
struct Seen {
    inputs: BTreeMap<InputId, CalibratedInput>,
    times: Option<(Timing, PlainTime)>,
}

/// All contexts as they were run, one after the other.
fn contexts(plan: &Plan, tokens: &[Token], bos: Option<Token>) -> Vec<Token> {
    let passages = plan.passages(tokens);
    passages.flat_map(|(_, p)| bos.into_iter().chain(p.iter().copied())).collect()
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

fn check_context(job: &CalibrationJob, model: &Model) -> Result<()> {
    let limit = model.n_ctx_train();
    if (16..=limit).contains(&job.ctx) {
        return Ok(());
    }
    Err(CaptureError::ContextLength { n_ctx: job.ctx, limit }.into())
}

fn warn_if_short(job: &CalibrationJob, plan: &Plan, reporter: &Reporter) {
    if plan.n_available() + plan.n_ctx() <= job.tokens {
        reporter.line(&format!(
            "{}: warning: the text has {} tokens, {} were asked for: give more text with -f, \
             fewer tokens fit less well",
            job.tool.0,
            plan.n_available(),
            job.tokens
        ));
    }
}

/// Checks that the file system of the output takes it and has room for it.
fn check_room(job: &CalibrationJob, inputs: &BTreeMap<InputId, usize>) -> Result<()> {
    let planned =
        |&d| calibration::planned_bytes(d, job.max_h_dim, job.max_samples, job.max_holdout);
    // The tokens, and what is about them.
    let text = 4 * job.tokens as u64;
    let needed = inputs.values().map(planned).fold(text, u64::saturating_add);
    Ok(outputs::check_space(&job.output, needed, needed)?)
}

impl Run<'_> {
    /// Runs the model and collects what its inputs of these `lengths` see.
    fn watch(&self, lengths: &BTreeMap<InputId, usize>) -> Result<Seen> {
        let (job, plan) = (self.job, self.plan);
        let params = CaptureParams {
            inputs: lengths,
            max_moment_dim: job.max_h_dim,
            n_ctx: plan.n_ctx(),
            n_fitted: plan.n_tokens(PassageKind::Fitted) as u64,
            n_held_out: plan.n_tokens(PassageKind::HeldOut) as u64,
            n_samples: job.max_samples,
            n_holdout_samples: job.max_holdout,
            seed: job.seed,
            n_threads: job.n_threads,
            stop: self.stop,
        };
        let mut capture = Capture::new(self.model, &params)?;
        let plain = self.run_contexts(&mut capture)?;
        let times = Some((capture.timing(), plain));
        Ok(Seen { inputs: capture.finish(), times })
    }

    /// Runs all contexts, the first ones also without watching if asked to.
    fn run_contexts(&self, capture: &mut Capture<'_, '_>) -> Result<PlainTime> {
        let (plan, reporter) = (self.plan, self.reporter);
        let mut plain = PlainTime::default();
        let mut eta = Eta::new(plan.len() as u64);
        let lines = !std::io::stderr().is_terminal();
        reporter.stage("running the model", plan.len() as u64);
        for (i, (kind, passage)) in plan.passages(self.tokens).enumerate() {
            let before = capture.timing();
            capture.run(kind, passage)?;
            if i < self.job.time_plain {
                let now = capture.timing();
                let (forward, sums) =
                    (now.forward - before.forward, now.accumulation - before.accumulation);
                plain.n_contexts += 1;
                plain.watched += forward + sums;
                plain.accumulation += sums;
                plain.plain += capture.time_plain(passage)?;
            }
            reporter.advance(1);
            let left = eta.advance(1);
            if lines && is_line(i + 1, plan.len()) {
                reporter.line(&format!("{} of {} contexts, {left} left", i + 1, plan.len()));
            }
        }
        let took = capture.timing();
        reporter.line(&format!("ran the model in {}", seconds(took.forward + took.accumulation)));
        Ok(plain)
    }
}

fn seconds(time: Duration) -> String {
    duration(time.as_secs_f64())
}

/// Whether `done` of `total` contexts are worth a line: the first, and about every sixteenth part.
fn is_line(done: usize, total: usize) -> bool {
    done == 1 || done * PROGRESS_LINES / total != (done - 1) * PROGRESS_LINES / total
}

/// Writes the file under another name and moves it in place when it is complete.
fn write(
    output: &Path,
    record: &Record,
    inputs: &BTreeMap<InputId, CalibratedInput>,
    interrupt: &Interrupt,
) -> Result<()> {
    let cannot = |cause| crate::Error::Write { path: output.to_owned(), cause };
    let mut unfinished = Unfinished::create(output)?;
    let file = BufWriter::new(unfinished.file());
    calibration::write(file, record, inputs).map_err(|error| match error {
        CalibrationError::Write(cause) => anyhow::Error::new(cannot(cause)),
        other => anyhow::Error::new(other).context(output.display().to_string()),
    })?;
    interrupt.check()?;
    Ok(unfinished.publish()?)
}
