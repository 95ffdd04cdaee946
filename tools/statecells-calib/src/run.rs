//! What the program does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use builder::flags::n_threads;
use builder::progress::{Eta, duration};
use builder::{Interrupt, Reporter, Selection, Source, explain_bus_errors, files, prepare};
use calibration::capture::{Capture, CaptureError, CaptureParams, Plan, Timing};
use calibration::{CalibratedInput, CalibrationError, PassageKind, Record, TextSketch};
use codec::Progress;
use format::InputId;
use ggml::llama::{Backend, Model, ModelParams, Token};

use crate::NAME;
use crate::cli::Cli;
use crate::summary::{self, PlainTime};
use crate::texts;

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

/// Runs the program.
pub fn run(cli: &Cli) -> Result<()> {
    let notice = format!("{NAME}: stopping, nothing will be written");
    let interrupt = Interrupt::install(notice).context("cannot catch signals")?;
    explain_bus_errors(NAME, cli.model()).context("cannot catch signals")?;
    let n_threads = n_threads(cli.threads);
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build_global()?;
    let reporter = Reporter::new();
    let result = calibrate(cli, n_threads, &interrupt, &reporter);
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
fn check(cli: &Cli) -> Result<Start> {
    check_files(cli)?;
    let source = Source::open(cli.model())?;
    let parts: Vec<_> = source.file().paths().map(|path| ("-m", path)).collect();
    prepare::check_distinct(&parts, &[("-o", cli.output())])?;
    // Which model it is takes its hash, whether it can be one that is calibrated does not.
    source.model_id(String::new())?;
    let lengths = inputs(cli, &source)?;
    check_room(cli, &lengths)?;
    prepare::check_architecture(&source)?;
    let model = Model::load(Backend::init(), cli.model(), &ModelParams::default())?;
    check_context(cli, &model)?;
    // A text of any length would not do for so few tokens.
    Plan::new(usize::MAX, cli.tokens, cli.ctx, false)?;
    Ok(Start { source, lengths, model })
}

fn check_files(cli: &Cli) -> Result<()> {
    let mut read: Vec<(&'static str, &Path)> = vec![("-m", cli.model())];
    read.extend(cli.file.iter().map(|path| ("-f", path.as_path())));
    prepare::check_distinct(&read, &[("-o", cli.output())])?;
    prepare::check_output(cli.output())?;
    if cli.output().symlink_metadata().is_ok() && !cli.force {
        bail!("{}: already exists: --force replaces it", cli.output().display());
    }
    for path in &cli.file {
        File::open(path).with_context(|| format!("{}: check the path", path.display()))?;
    }
    Ok(())
}

fn calibrate(
    cli: &Cli,
    n_threads: usize,
    interrupt: &Interrupt,
    reporter: &Reporter,
) -> Result<()> {
    let Start { source, lengths, model } = check(cli)?;
    if source.has_mtp() && !cli.tokens_only {
        let mtp = source.describe_mtp();
        reporter.line(&format!("note: {mtp} are left out: no text runs through them"));
    }
    let (text, text_ids) = texts::read(cli, source.file(), &model)?;
    let plan = Plan::new(text.tokens().len(), cli.tokens, cli.ctx, model.bos().is_some())?;
    warn_if_short(cli, &plan, reporter);
    let model_id = source.model_id(source.sha256(reporter, interrupt)?)?;
    let stop = || interrupt.is_set();
    let run = Run { cli, model: &model, plan: &plan, tokens: text.tokens(), reporter, stop: &stop };
    let seen = if lengths.is_empty() { Seen::default() } else { run.watch(&lengths, n_threads)? };
    source.check_unchanged(&model_id.sha256, reporter, interrupt)?;
    let record = Record {
        model: model_id,
        texts: text_ids,
        sketch: TextSketch::of(plan.passages(text.tokens()).map(|(_, passage)| passage)),
        n_fitted: plan.n_tokens(PassageKind::Fitted) as u64,
        n_held_out: plan.n_tokens(PassageKind::HeldOut) as u64,
        n_ctx: u32::try_from(plan.n_ctx())?,
        tokens: contexts(&plan, text.tokens(), model.bos()),
        seed: cli.seed,
        tool: format!("{NAME} {}", env!("CARGO_PKG_VERSION")),
        llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
    };
    write(cli.output(), &record, &seen.inputs, interrupt)?;
    let n_bytes = fs::metadata(cli.output()).map_or(0, |m| m.len());
    reporter.finish();
    summary::print(cli.output(), &plan, n_bytes, seen.times)?;
    Ok(())
}

/// The model and what it is to be run on.
struct Run<'a> {
    cli: &'a Cli,
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
fn inputs(cli: &Cli, source: &Source) -> Result<BTreeMap<InputId, usize>> {
    if cli.tokens_only {
        return Ok(BTreeMap::new());
    }
    let selection = Selection { layers: cli.layers.clone(), ..Selection::default() };
    let selected = source.select(&selection)?;
    if let (Some(layers), true) = (&cli.layers, selected.iter().any(|t| source.is_mtp(*t))) {
        let mtp = source.describe_mtp();
        bail!("--layers {layers}: no text runs through {mtp}: leave them out");
    }
    let mut inputs = BTreeMap::new();
    for tensor in selected {
        let d = source.shape(tensor).d_in;
        if *inputs.entry(tensor.input()).or_insert(d) != d {
            bail!(
                "{}: gate and up of layer {} have inputs of different lengths: this model cannot be calibrated",
                cli.model().display(),
                tensor.layer
            );
        }
    }
    Ok(inputs)
}

fn check_context(cli: &Cli, model: &Model) -> Result<()> {
    let limit = model.n_ctx_train();
    if (16..=limit).contains(&cli.ctx) {
        return Ok(());
    }
    Err(CaptureError::ContextLength { n_ctx: cli.ctx, limit }.into())
}

fn warn_if_short(cli: &Cli, plan: &Plan, reporter: &Reporter) {
    if plan.n_available() + plan.n_ctx() <= cli.tokens {
        reporter.line(&format!(
            "{NAME}: warning: the text has {} tokens, {} were asked for: give more text with -f, \
             fewer tokens fit less well",
            plan.n_available(),
            cli.tokens
        ));
    }
}

/// Checks that the file system of the output takes it and has room for it.
fn check_room(cli: &Cli, inputs: &BTreeMap<InputId, usize>) -> Result<()> {
    let planned =
        |&d| calibration::planned_bytes(d, cli.max_h_dim, cli.max_samples, cli.max_holdout);
    // The tokens, and what is about them.
    let text = 4 * cli.tokens as u64;
    let needed = inputs.values().map(planned).fold(text, u64::saturating_add);
    Ok(prepare::check_space(cli.output(), needed, needed)?)
}

impl Run<'_> {
    /// Runs the model and collects what its inputs of these `lengths` see.
    fn watch(&self, lengths: &BTreeMap<InputId, usize>, n_threads: usize) -> Result<Seen> {
        let (cli, plan) = (self.cli, self.plan);
        let params = CaptureParams {
            inputs: lengths,
            max_moment_dim: cli.max_h_dim,
            n_ctx: plan.n_ctx(),
            n_fitted: plan.n_tokens(PassageKind::Fitted) as u64,
            n_held_out: plan.n_tokens(PassageKind::HeldOut) as u64,
            n_samples: cli.max_samples,
            n_holdout_samples: cli.max_holdout,
            seed: cli.seed,
            n_threads,
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
            if i < self.cli.time_plain {
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
    let temporary = Temporary(files::temporary(output));
    let cannot = |cause| builder::Error::Write { path: output.to_owned(), cause };
    let file = File::create(&temporary.0).map_err(|e| cannot(e.into()))?;
    calibration::write(BufWriter::new(file), record, inputs).map_err(|error| match error {
        CalibrationError::Write(cause) => anyhow::Error::new(cannot(cause)),
        other => anyhow::Error::new(other).context(output.display().to_string()),
    })?;
    interrupt.check()?;
    files::publish(&temporary.0, output)?;
    Ok(())
}

/// An unfinished file, removed in any case; after publishing there is none of that name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
