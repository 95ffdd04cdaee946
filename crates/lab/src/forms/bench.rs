//! One run: build the file, foretell its cost, measure it, compare with the baseline.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::forms::Error;
use crate::forms::cost::{Cost, cost};
use crate::forms::flags::{FORETOLD, MEASURED, MaterialFlags};
use crate::forms::measure::{Outcome, load, measure};
use crate::forms::plan::{Policy, Run};
use crate::forms::texts::{self, Piece};
use crate::forms::trace::{Trace, trace};

/// Pieces of the first context length whose most probable tokens are the greedy pack.
const PACK_PIECES: usize = 24;
/// Share of the pack that must stay as it is: answers are exact, of plain text the runner-up is often as good.
const PACK_ANSWERS: f64 = 1.0;
const PACK_TEXT: f64 = 0.9;
/// A cliff: the perplexity is so many times the baseline's, or so many answers in a hundred are lost.
const CLIFF_PERPLEXITY: f64 = 1.5;
const CLIFF_ANSWERS: f64 = 0.10;

/// Examples per task of the trace, and contexts and their tokens where it is of a text.
const TRACED_EXAMPLES: usize = 20;
const TRACED_CONTEXTS: usize = 3;
const TRACED_TOKENS: usize = 128;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Dense model.
    pub model: PathBuf,
    /// Folder of the forms, one at a time; must exist.
    pub folder: PathBuf,
    /// `seeddelta-build`.
    pub builder: PathBuf,
    /// Threads of builder, model and products.
    pub threads: u16,
}

/// Everything that stays the same from run to run.
pub struct Bench {
    setup: Setup,
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
    /// Exact answers lost, as a share of all, in the context length where it is most.
    pub lost_answers: f64,
    /// Share of the greedy pack that stayed.
    pub pack: f64,
    /// Whether that is enough.
    pub pack_passed: bool,
    /// Whether it fell off.
    pub cliff: bool,
}

impl RunResult {
    /// One line for the terminal.
    #[must_use]
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

/// What a model is measured on and traced with.
struct Material {
    contexts: (&'static str, Vec<usize>),
    pieces: Vec<Vec<Piece>>,
    calibration: Vec<Piece>,
}

impl Material {
    fn read(model: &llama::Model, flags: &MaterialFlags) -> Result<Self, Error> {
        let lengths = |default| Vec::from(flags.contexts.unwrap_or(default));
        if let Some(folder) = &flags.examples {
            let lengths = lengths([1, 4]);
            let path = |split: crate::tiny::dataset::Split| folder.join(split.file_name());
            let test = texts::examples(&path(MEASURED), flags.per_task)?;
            let watched = texts::examples(&path(FORETOLD), TRACED_EXAMPLES)?;
            let of = |&n: &usize| texts::of_examples(model, &test, n);
            let pieces = lengths.iter().map(of).collect::<Result<_, _>>()?;
            let calibration = texts::of_examples(model, &watched, 1)?;
            return Ok(Self { contexts: ("examples", lengths), pieces, calibration });
        }
        let (Some(text), Some(calib)) = (&flags.text, &flags.calib_text) else {
            return Err(Error::NoMaterial);
        };
        let lengths = lengths([64, 256]);
        let of = |&n: &usize| texts::of_text(model, text, n, (flags.text_tokens / n).max(1));
        let pieces = lengths.iter().map(of).collect::<Result<_, _>>()?;
        let calibration = texts::of_text(model, calib, TRACED_TOKENS, TRACED_CONTEXTS)?;
        Ok(Self { contexts: ("tokens", lengths), pieces, calibration })
    }
}

impl Bench {
    /// Measures the dense model and traces it.
    ///
    /// # Errors
    /// [`Error`]: a file that is missing or unfit, llama.cpp's, no material.
    pub fn open(setup: Setup, flags: &MaterialFlags) -> Result<Self, Error> {
        if !setup.builder.is_file() {
            let reason = "is missing: it makes the forms that are tried".to_owned();
            return Err(Error::Unfit { path: setup.builder, reason });
        }
        let dense = load(&setup.model)?;
        let threads = i32::from(setup.threads);
        let Material { contexts, pieces, calibration } = Material::read(&dense, flags)?;
        let trace = trace(&dense, &calibration, threads)?;
        let baseline = pieces.iter().map(|p| measure(&dense, p, threads));
        let baseline = baseline.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { pieces, contexts, trace, baseline, n_layers: dense.n_layer(), setup })
    }

    /// Layers of the model.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Makes all `runs`; `say` gets a line for each.
    ///
    /// # Errors
    /// Those of [`Bench::run`].
    pub fn run_all(
        &mut self,
        runs: &[Run],
        say: &mut dyn FnMut(&str),
    ) -> Result<Vec<RunResult>, Error> {
        let measured = runs.iter().enumerate().map(|(i, run)| {
            let result = self.run(run.group, &run.name, &run.layers, &run.policy())?;
            say(&format!("[{}/{}] {}: {}", i + 1, runs.len(), run.group, result.line()));
            Ok(result)
        });
        measured.collect()
    }

    /// Builds and measures the form of `policy`.
    ///
    /// # Errors
    /// [`Error`]: the builder's, that of a file, llama.cpp's.
    pub fn run(
        &mut self,
        group: &str,
        name: &str,
        layers: &[usize],
        policy: &Policy,
    ) -> Result<RunResult, Error> {
        let coded = self.build(policy)?;
        let threads = self.setup.threads;
        let cost = cost(&self.setup.model, &coded, &self.trace)?;
        let model = load(&coded)?;
        let outcomes = self.pieces.iter().map(|p| measure(&model, p, i32::from(threads)));
        let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
        let pairs = || outcomes.iter().zip(&self.baseline);
        let (pack, pack_passed) = self.pack(&outcomes[0]);
        let exact = |o: &Outcome| o.exact_rate().unwrap_or(0.0);
        let lost_answers =
            pairs().map(|(now, before)| exact(before) - exact(now)).fold(0.0, f64::max);
        let steep =
            |(now, before): (&Outcome, &Outcome)| now.loss - before.loss > CLIFF_PERPLEXITY.ln();
        let cliff = lost_answers > CLIFF_ANSWERS || pairs().any(steep);
        Ok(RunResult {
            group: group.to_owned(),
            name: name.to_owned(),
            layers: layers.to_vec(),
            cost,
            loss_increase: pairs().map(|(now, before)| now.loss - before.loss).collect(),
            lost_answers,
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

    fn build(&self, policy: &Policy) -> Result<PathBuf, Error> {
        let Setup { model, folder, builder, threads } = &self.setup;
        let (path, coded) = (folder.join("run.policy.json"), folder.join("run.gguf"));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Io { path, cause }
        };
        fs::write(&path, policy.to_json()).map_err(io(&path))?;
        let output = Command::new(builder)
            .args(["--force", "-t", &threads.to_string()])
            .args([Path::new("-i"), model, Path::new("-o"), &coded])
            .args([Path::new("--policy"), &path])
            .output()
            .map_err(io(builder))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Unfit { path: builder.clone(), reason });
        }
        Ok(coded)
    }
}
