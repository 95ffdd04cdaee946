//! Making a calibration: a model runs on a text, and what its matrices see is written down.

mod beside;
mod check;
mod grow;
mod own_text;
mod summary;
mod texts;
mod watching;

use std::collections::BTreeMap;
use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Result;
use calibration::capture::{CaptureError, Contexts};
use calibration::{
    CalibratedInput, CalibrationError, DEFAULT_MAX_EXPERT_MIB, DEFAULT_MAX_MOMENT_DIM, ModelId,
    PassageKind, Provenance, TextSketch,
};
use format::InputId;
use llama::{Backend, Model, ModelParams, Token};
use program::files::Unfinished;
use program::{Interrupt, LayerList, Reporter};

use self::grow::Before;
use self::texts::Text;
use self::watching::{Run, Seen};
use crate::Source;
use crate::error::watch;

pub use beside::BesideOutput;

/// Tokens of a context, unless the model was trained for fewer.
pub const DEFAULT_CTX: usize = 512;
/// Inputs kept where no moment is formed, see [`CalibrationJob::max_samples`].
pub const DEFAULT_SAMPLES: u64 = 2048;
/// Held-out inputs kept, see [`CalibrationJob::max_holdout`].
pub const DEFAULT_HOLDOUT: u64 = 512;
/// Tokens to run for each value of the longest input, where nobody says how many: with fewer, second moments are fitted
/// to what is peculiar to the text.
pub const TOKENS_PER_INPUT: usize = 30;
/// Tokens to run however short the inputs are.
pub const MIN_TOKENS: usize = 131_072;

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
    /// Texts, one after the other; none for a text that the model writes itself.
    pub file: Vec<PathBuf>,
    /// File to write.
    pub output: PathBuf,
    /// Whether all texts are conversations, whatever they are called.
    pub chat: bool,
    /// Tokens to run, at most; `None` for what the longest input needs.
    pub tokens: Option<usize>,
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
    /// MiB for the moments of single experts, in all layers together.
    pub max_expert_mib: usize,
    /// Layers; `None` for all that text runs through.
    pub layers: Option<LayerList>,
    /// Threads.
    pub n_threads: usize,
    /// Seed that chooses which inputs are kept, and what the model writes.
    pub seed: u64,
    /// Contexts that are run without watching as well, to compare the time.
    pub time_plain: usize,
    /// Whether an existing output may be replaced.
    pub force: bool,
    /// Whether to add to the existing output.
    pub resume: bool,
}

impl CalibrationJob {
    /// The calibration of `model` at `output` by `tool`, with the default of everything else.
    #[must_use]
    pub fn new(tool: (&'static str, &'static str), model: PathBuf, output: PathBuf) -> Self {
        Self {
            tool,
            model,
            file: Vec::new(),
            output,
            chat: false,
            tokens: None,
            ctx: DEFAULT_CTX,
            tokens_only: false,
            max_samples: DEFAULT_SAMPLES,
            max_holdout: DEFAULT_HOLDOUT,
            max_h_dim: DEFAULT_MAX_MOMENT_DIM,
            max_expert_mib: DEFAULT_MAX_EXPERT_MIB,
            layers: None,
            n_threads: 1,
            seed: 0,
            time_plain: 0,
            force: false,
            resume: false,
        }
    }

    /// Tokens to run, for a model such as `source`.
    fn n_tokens(&self, source: &Source) -> usize {
        let longest = || source.map().matrices().map(|matrix| matrix.shape.d_in).max().unwrap_or(0);
        let needed = || longest().saturating_mul(TOKENS_PER_INPUT).max(MIN_TOKENS);
        self.tokens.unwrap_or_else(needed)
    }
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
    let result = calibrate(job, (&reporter, &interrupt));
    reporter.finish();
    match result {
        Err(_) if interrupt.is_set() => Err(Stopped.into()),
        result => result,
    }
}

fn calibrate(job: &CalibrationJob, watch: (&Reporter, &Interrupt)) -> Result<()> {
    let (reporter, interrupt) = watch;
    check::files(job)?;
    let source = Source::open(&job.model)?;
    let lengths = check::source(job, &source)?;
    let model = Model::load(Backend::init(), &job.model, &ModelParams::default())?;
    check::model(job, &source, &model)?;
    if source.has_mtp() && !job.tokens_only {
        let mtp = source.describe_mtp();
        reporter.line(&format!("note: {mtp} are left out: no text runs through them"));
    }
    let before = job.resume.then(|| Before::open(job, &source, &lengths)).transpose()?;
    let given = texts::read(job, source.file(), &model)?;
    let sha256 = source.sha256(reporter, interrupt)?;
    let made = make((job, &source, &model), (before, given), (&lengths, &sha256), watch)?;
    let n_bytes = fs::metadata(&job.output).map_or(0, |m| m.len());
    reporter.finish();
    summary::print(&job.output, &made.contexts, n_bytes, made.seen.times)?;
    Ok(())
}

/// What was made.
struct Made {
    contexts: Contexts,
    seen: Seen,
}

/// Makes a calibration of which everything was checked, with the text that was `given` or one that the model writes, behind what
/// there was `before`. `lengths` are those of the inputs to watch, none if the model is not to be run on the text; `sha256` is
/// the hash of its file.
fn make(
    (job, source, model): (&CalibrationJob, &Source, &Model),
    (before, given): (Option<Before>, Option<Text>),
    (lengths, sha256): (&BTreeMap<InputId, usize>, &str),
    watch: (&Reporter, &Interrupt),
) -> Result<Made> {
    let (reporter, interrupt) = watch;
    let model_id = source.model_id(sha256.to_owned())?;
    let n_tokens = job.n_tokens(source);
    let n_before = before.as_ref().map_or(0, Before::n_contexts);
    before.as_ref().map_or(Ok(()), |before| before.check_model(&model_id))?;
    let text = match given {
        Some(text) => text,
        None => own_text::write((job, model), (n_before, n_tokens), &model_id, watch)?,
    };
    let contexts = contexts(job, n_tokens, &text, model.bos())?.behind(n_before);
    warn_if_short((job, n_tokens), &contexts, reporter);
    let stop = || interrupt.is_set();
    let shares = before.as_ref().map(|before| before.shares(job, &contexts));
    let samples = shares.map_or((job.max_samples, job.max_holdout), |(fitted, held_out)| {
        (fitted.of_added(), held_out.of_added())
    });
    let tokens = &text.tokens;
    let run = Run { job, model, contexts: &contexts, tokens, samples, reporter, stop: &stop };
    let mut seen = if lengths.is_empty() { Seen::default() } else { run.watch(lengths)? };
    source.check_unchanged(&model_id.sha256, reporter, interrupt)?;
    let provenance = provenance((job, &model_id), &contexts, &text, model.bos())?;
    let provenance = match before.zip(shares) {
        Some((before, shares)) => {
            before.merge(provenance, &mut seen.inputs, shares, model.bos())?
        }
        None => provenance,
    };
    write(&job.output, &provenance, &seen.inputs, interrupt)?;
    own_text::forget(&job.output);
    Ok(Made { contexts, seen })
}

/// The contexts of about `n_tokens` tokens that are cut from `text`.
fn contexts(
    job: &CalibrationJob,
    n_tokens: usize,
    text: &Text,
    bos: Option<Token>,
) -> Result<Contexts, CaptureError> {
    Contexts::new(text.tokens.len(), n_tokens, job.ctx, bos.is_some())
}

/// Where a calibration on these `contexts` of `text` comes from.
fn provenance(
    (job, model_id): (&CalibrationJob, &ModelId),
    contexts: &Contexts,
    text: &Text,
    bos: Option<Token>,
) -> Result<Provenance> {
    Ok(Provenance {
        model: model_id.clone(),
        texts: text.ids.clone(),
        sketch: TextSketch::of(contexts.passages(&text.tokens).map(|(_, passage)| passage)),
        n_fitted: contexts.n_tokens(PassageKind::Fitted) as u64,
        n_held_out: contexts.n_tokens(PassageKind::HeldOut) as u64,
        n_ctx: u32::try_from(contexts.n_ctx())?,
        tokens: tokens_of(contexts, &text.tokens, bos),
        seed: job.seed,
        tool: format!("{} {}", job.tool.0, job.tool.1),
        llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
    })
}

/// All contexts as they were run, one after the other.
fn tokens_of(contexts: &Contexts, tokens: &[Token], bos: Option<Token>) -> Vec<Token> {
    let passages = contexts.passages(tokens);
    passages.flat_map(|(_, p)| bos.into_iter().chain(p.iter().copied())).collect()
}

fn warn_if_short(
    (job, n_tokens): (&CalibrationJob, usize),
    contexts: &Contexts,
    reporter: &Reporter,
) {
    if contexts.n_available() + contexts.n_ctx() <= n_tokens {
        reporter.line(&format!(
            "{}: warning: the text has {} tokens, {n_tokens} were asked for: give more text with -f, \
             fewer tokens fit less well",
            job.tool.0,
            contexts.n_available(),
        ));
    }
}

/// Writes the file under another name and moves it in place when it is complete.
fn write(
    output: &Path,
    provenance: &Provenance,
    inputs: &BTreeMap<InputId, CalibratedInput>,
    interrupt: &Interrupt,
) -> Result<()> {
    let cannot = |cause| crate::Error::Write { path: output.to_owned(), cause };
    let mut unfinished = Unfinished::create(output)?;
    let file = BufWriter::new(unfinished.file());
    calibration::write(file, provenance, inputs).map_err(|error| match error {
        CalibrationError::Write(cause) => anyhow::Error::new(cannot(cause)),
        other => anyhow::Error::new(other).context(output.display().to_string()),
    })?;
    interrupt.check()?;
    Ok(unfinished.publish()?)
}
