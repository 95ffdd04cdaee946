//! One run: build the file, foretell its cost, measure it, compare with the baseline.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use seeddelta_lab::cost::{Cost, cost};
use seeddelta_lab::measure::{Outcome, load, measure};
use seeddelta_lab::plan::Policy;
use seeddelta_lab::texts::{self, Piece};
use seeddelta_lab::trace::{Trace, trace};
use serde::Serialize;

use crate::cli::Cli;

/// Pieces of the first context length whose most probable tokens are the greedy pack.
const PACK_PIECES: usize = 24;
/// Share of the pack that must stay as it is: answers are exact, of plain text the runner-up is often as good.
const PACK_ANSWERS: f64 = 1.0;
const PACK_TEXT: f64 = 0.9;
/// A cliff: the perplexity is so many times the baseline's, or so many answers in a hundred are lost.
const CLIFF_PERPLEXITY: f64 = 1.5;
const CLIFF_ANSWERS: f64 = 0.10;

/// Everything that stays the same from run to run.
pub struct Bench {
    model: PathBuf,
    folder: PathBuf,
    builder: PathBuf,
    threads: u16,
    pieces: Vec<Vec<Piece>>,
    /// Unit of the context lengths, and the lengths.
    pub contexts: (&'static str, Vec<usize>),
    trace: Trace,
    /// The dense model.
    pub baseline: Vec<Outcome>,
    n_layers: usize,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// `B2`, `B3`, ...
    pub group: String,
    /// What it is.
    pub name: String,
    /// Coded layers.
    pub layers: Vec<usize>,
    /// Foretold before it ran.
    pub cost: Cost,
    /// Measured, one per context length.
    pub outcomes: Vec<Outcome>,
    /// Loss minus the baseline's, in nats, one per context length.
    pub loss_increase: Vec<f64>,
    /// Share of the greedy pack that stayed.
    pub pack: f64,
    /// Whether that is enough.
    pub pack_passed: bool,
    /// Whether it fell off.
    pub cliff: bool,
}

impl RunResult {
    /// One line for the terminal.
    pub fn line(&self) -> String {
        let exact = self.outcomes[0].exact_rate();
        let exact = exact.map_or(String::new(), |e| format!(", {:.1} % exact", 100.0 * e));
        format!(
            "{}: perplexity {:.4}{exact}, stack_cost {:.4}, pack {}{}",
            self.name,
            self.outcomes[0].perplexity(),
            self.cost.stack_cost,
            if self.pack_passed { "PASS" } else { "FAIL" },
            if self.cliff { ", CLIFF" } else { "" },
        )
    }
}

impl Bench {
    /// Measures the dense model and traces it.
    pub fn open(cli: &Cli) -> Result<Self> {
        std::fs::create_dir_all(&cli.output).with_context(|| cli.output.display().to_string())?;
        let builder = match &cli.builder {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("seeddelta-build"),
        };
        if !builder.is_file() {
            bail!("{} is missing: give --builder", builder.display());
        }
        let dense = load(&cli.model)?;
        let threads = i32::from(cli.threads);
        let lengths = |default: [usize; 2]| cli.contexts.clone().unwrap_or(default.into());
        let (contexts, pieces, calibration) = match (&cli.examples, &cli.text, &cli.calib_text) {
            (Some(folder), _, _) => {
                let lengths = lengths([1, 4]);
                let test = texts::examples(&folder.join("test.jsonl"), cli.per_task)?;
                let pieces = lengths.iter().map(|&n| texts::of_examples(&dense, &test, n));
                let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
                let watched = texts::examples(&folder.join("validation.jsonl"), 20)?;
                (("examples", lengths), pieces, texts::of_examples(&dense, &watched, 1)?)
            }
            (None, Some(text), Some(calib)) => {
                let lengths = lengths([64, 256]);
                let of = |&n: &usize| texts::of_text(&dense, text, n, (cli.text_tokens / n).max(1));
                let pieces = lengths.iter().map(of).collect::<Result<Vec<_>, _>>()?;
                (("tokens", lengths), pieces, texts::of_text(&dense, calib, 128, 3)?)
            }
            _ => bail!("give --examples, or --text and --calib-text"),
        };
        let trace = trace(&dense, &calibration, threads)?;
        let baseline = pieces.iter().map(|p| measure(&dense, p, threads));
        let baseline = baseline.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            model: cli.model.clone(),
            folder: cli.output.clone(),
            builder,
            threads: cli.threads,
            pieces,
            contexts,
            trace,
            baseline,
            n_layers: dense.n_layer(),
        })
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Builds and measures the form of `policy`.
    pub fn run(
        &mut self,
        group: &str,
        name: &str,
        layers: &[usize],
        policy: &Policy,
    ) -> Result<RunResult> {
        let coded = self.build(policy).with_context(|| format!("{group} {name}"))?;
        let cost = cost(&self.model, &coded, &self.trace, usize::from(self.threads))?;
        let model = load(&coded)?;
        let outcomes = self.pieces.iter().map(|p| measure(&model, p, i32::from(self.threads)));
        let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
        let pairs = || outcomes.iter().zip(&self.baseline);
        let (pack, pack_passed) = self.pack(&outcomes[0]);
        let cliff = pairs().any(|(now, before)| {
            let lost = before.exact_rate().unwrap_or(0.0) - now.exact_rate().unwrap_or(0.0);
            now.loss - before.loss > CLIFF_PERPLEXITY.ln() || lost > CLIFF_ANSWERS
        });
        Ok(RunResult {
            group: group.to_owned(),
            name: name.to_owned(),
            layers: layers.to_vec(),
            cost,
            loss_increase: pairs().map(|(now, before)| now.loss - before.loss).collect(),
            outcomes,
            pack,
            pack_passed,
            cliff,
        })
    }

    fn pack(&self, outcome: &Outcome) -> (f64, bool) {
        let pieces = self.pieces[0].iter().take(PACK_PIECES);
        let n: usize = pieces.flat_map(|p| &p.scored).map(|(range, _)| range.len()).sum();
        let first = |o: &Outcome| Outcome { greedy: o.greedy[..n].to_vec(), ..Outcome::default() };
        let share = first(outcome).agreement(&first(&self.baseline[0]));
        let needed = if outcome.exact_rate().is_some() { PACK_ANSWERS } else { PACK_TEXT };
        (share, share >= needed)
    }

    fn build(&self, policy: &Policy) -> Result<PathBuf> {
        let (path, coded) = (self.folder.join("run.policy.json"), self.folder.join("run.gguf"));
        std::fs::write(&path, serde_json::to_string(policy)?)
            .with_context(|| path.display().to_string())?;
        let output = Command::new(&self.builder)
            .args(["--force", "-t", &self.threads.to_string()])
            .args([Path::new("-i"), &self.model, Path::new("-o"), &coded])
            .args([Path::new("--policy"), &path])
            .output()
            .with_context(|| self.builder.display().to_string())?;
        if !output.status.success() {
            bail!("seeddelta-build: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(coded)
    }
}
