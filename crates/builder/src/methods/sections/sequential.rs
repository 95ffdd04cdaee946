//! `--sequential`: what the next matrices will see, with the model as coded so far.

use std::path::{Path, PathBuf};

use calibration::Calibration;
use clap::ValueEnum;
use format::{Branch, InputRole, MatrixId};
use numerics::TiledMatMul;
use program::progress::Eta;
use program::{Interrupt, Reporter};
use whole_model::{Decoded, Outline, Stream, TokenWeights, Transformer, Watch, stream_bytes};

use super::states;
use super::text::{check_layers, check_memory, check_text, contexts, failed, stream, unsigned};
use crate::{Decoded as DecodedOf, Error, Recapture, Recaptured, Sequence, Source};

/// Held-out inputs kept one by one of every recaptured matrix.
const HOLD_OUT_SAMPLES: u64 = 512;

/// Targets are damped so many times as the metric. A target has as many numbers as the matrix, told from not many more tokens: along
/// directions that the inputs hardly take it follows what these tokens happen to lack, and another text pays for that
/// (docs/results/quality.md, "How far targets are trusted").
const TARGET_DAMPING: f64 = 8.0;

/// The flag that asks for it.
const SEQUENTIAL: &str = "--sequential";

/// The flag that lets tokens count differently.
const TOKEN_WEIGHTS: &str = "--token-weights";

/// How much each token counts in what is fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weighing {
    /// All alike
    Equal,
    /// By what an error there costs in the model's predictions: goes through the model and back once more
    Curvature,
}

impl std::fmt::Display for Weighing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().expect("none is skipped").get_name())
    }
}

/// How activations are recaptured.
#[derive(Clone, Debug)]
pub struct SequentialParams {
    /// Layers between two recaptures.
    pub every: usize,
    /// How much the tokens count.
    pub weights: Weighing,
    /// Where the source's hidden states are kept for later builds, if they are.
    pub states: Option<PathBuf>,
}

/// Why `--sequential` cannot be had for `source`, whose layers llama.cpp cannot run one by one; `None` if it can.
///
/// # Errors
/// [`Error::Model`] if nothing could run the model at all.
pub fn why_not_layers(source: &Source) -> Result<Option<String>, Error> {
    crate::prepare::check_architecture(source)?;
    let model = source.model().map_err(|e| Error::cannot_run(&e))?;
    let all: Vec<MatrixId> = source.matrices().collect();
    if let Some(reason) = experts_among(&all) {
        return Ok(Some(reason));
    }
    let checked = whole_model::check(model, &source.run_through(&all), &[]);
    Ok(checked.err().map(|error| error.to_string()))
}

/// Why models with experts among `tensors` are not run with what is coded so far.
fn experts_among(tensors: &[MatrixId]) -> Option<String> {
    let expert = tensors.iter().find(|id| id.role.branch() == Branch::Experts)?;
    Some(format!("experts ({expert}) are fitted to the source model alone"))
}

/// Recapturing with what it takes from the method.
#[derive(Clone, Debug)]
pub(super) struct SequentialStep {
    pub(super) params: SequentialParams,
    /// Inputs up to this length get a moment and a target.
    pub(super) max_moment_dim: usize,
    /// Of the metric that matrices are coded in.
    pub(super) damping: f64,
    /// Whether the calibration's own activations are of no use.
    pub(super) needs_text_only: bool,
}

impl Sequence for SequentialStep {
    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error> {
        calibration.map_or(Ok(()), |calibration| check_text(SEQUENTIAL, calibration))?;
        if let Some(reason) = experts_among(tensors) {
            return Err(Error::flag(SEQUENTIAL, format!("{reason}: give {SEQUENTIAL} 0")));
        }
        let map = source.run_through(tensors);
        let needed = stream_bytes(&map, self.max_moment_dim);
        check_memory(SEQUENTIAL, needed)?;
        if self.params.weights == Weighing::Curvature {
            let way_out = format!("leave out {TOKEN_WEIGHTS}");
            let refuse = |error| Error::flag(TOKEN_WEIGHTS, format!("{error}: {way_out}"));
            Outline::of(source.file()).map_err(refuse)?;
        }
        if let Some(path) = &self.params.states {
            states::check(path, source, calibration)?;
        }
        let way_out = format!("give {SEQUENTIAL} 0");
        check_layers((SEQUENTIAL, &way_out), (source, calibration), &map, |_| Ok(()))
    }

    fn needs_text_only(&self) -> bool {
        self.needs_text_only
    }

    fn recapture<'a>(
        &self,
        source: &'a Source,
        calibration: &'a Calibration,
        folder: &Path,
        watch: (&'a Reporter, &'a Interrupt),
    ) -> Result<Box<dyn Recapture + 'a>, Error> {
        Ok(Box::new(Sequential::new(self.clone(), (source, calibration), folder, watch)?))
    }
}

/// The model with its calibration text between two layers.
struct Sequential<'a> {
    step: SequentialStep,
    source: &'a Source,
    calibration: &'a Calibration,
    stream: Stream<'a>,
    /// Whether it was said which targets are made span by span.
    has_told: bool,
    reporter: &'a Reporter,
    interrupt: &'a Interrupt,
}

impl<'a> Sequential<'a> {
    /// Recaptures on the text behind `calibration`, with hidden states in `folder`.
    ///
    /// # Errors
    /// [`Error::Program`].
    fn new(
        step: SequentialStep,
        (source, calibration): (&'a Source, &'a Calibration),
        folder: &Path,
        (reporter, interrupt): (&'a Reporter, &'a Interrupt),
    ) -> Result<Self, Error> {
        let mut stream = stream(source, calibration, folder).map_err(failed(SEQUENTIAL))?;
        if let Some(path) = &step.params.states {
            stream.keep_source(states::open(path, source, calibration)?);
        }
        let has_told = false;
        Ok(Self { step, source, calibration, stream, has_told, reporter, interrupt })
    }

    /// Says once that the inputs of one of `tensors` are so long that their targets are made span by span.
    fn tell_of_spans(&mut self, tensors: &[MatrixId]) {
        let max = self.step.max_moment_dim;
        let d_in = |t: &MatrixId| self.source.shape(*t).d_in;
        let Some(long) = tensors.iter().find(|t| d_in(t) > max) else { return };
        if !std::mem::replace(&mut self.has_told, true) {
            self.reporter.line(&format!(
                "note: {} and others of {} inputs, longer than --max-h-dim {max}, make up for errors span by span",
                long.stem(),
                d_in(long)
            ));
        }
    }

    /// Weighs the tokens of all contexts.
    fn weigh(&mut self) -> Result<(), Error> {
        let model = Transformer::open(self.source.file()).map_err(failed(TOKEN_WEIGHTS))?;
        let contexts: Vec<Vec<u32>> =
            contexts(self.calibration).map(|(_, context)| unsigned(context)).collect();
        let total = TokenWeights::n_steps(&model, contexts.len());
        let (reporter, interrupt) = (self.reporter, self.interrupt);
        reporter.stage("weighing tokens", total as u64);
        let (mut eta, mut done) = (Eta::new(total as u64), 0);
        let mut heard = || {
            reporter.advance(1);
            done += 1;
            let left = eta.advance(1);
            if done * 10 / total > (done - 1) * 10 / total {
                reporter.line(&format!("weighing tokens: {} %; ETA {left}", 100 * done / total));
            }
            interrupt.is_set()
        };
        let weights = TokenWeights::curvature(&model, &contexts, &mut heard);
        self.stream.weigh(weights.map_err(failed(TOKEN_WEIGHTS))?);
        Ok(())
    }

    /// What `decoded` puts in place of the source's matrices in `layer`.
    fn coded(&self, layer: usize, decoded: &mut DecodedOf<'_>) -> Result<Decoded, Error> {
        let mut coded = Decoded::new();
        for id in self.source.matrices().filter(|id| id.layer == layer) {
            if let Some(dense) = decoded(id)? {
                coded.insert(id, dense);
            }
        }
        Ok(coded)
    }
}

impl Recapture for Sequential<'_> {
    /// Where each layer is a group, each of its inputs is one of its own: down can make up for errors of gate and up.
    fn group(&self, tensor: MatrixId) -> usize {
        match self.step.params.every {
            1 => InputRole::ALL.len() * tensor.layer + tensor.role.input() as usize,
            every => tensor.layer / every,
        }
    }

    fn inputs(
        &mut self,
        tensors: &[MatrixId],
        decoded: &mut DecodedOf<'_>,
    ) -> Result<Recaptured, Error> {
        let stop = || self.interrupt.is_set();
        let layers = tensors.iter().map(|t| t.layer);
        let (first, last) = (layers.clone().min(), layers.max());
        let (Some(first), Some(last)) = (first, last) else { return Ok(Recaptured::default()) };
        if self.step.params.weights == Weighing::Curvature && !self.stream.is_weighed() {
            self.weigh()?;
        }
        while self.stream.layer() < first {
            let coded = self.coded(self.stream.layer(), decoded)?;
            self.stream.advance(&coded, &stop).map_err(failed(SEQUENTIAL))?;
        }
        self.tell_of_spans(tensors);
        // A resumed run may have some of the group already: what the others are fitted to must not depend on it.
        let mut before = |t| if tensors.contains(&t) { Ok(None) } else { decoded(t) };
        let layers: Vec<Decoded> =
            (first..=last).map(|n| self.coded(n, &mut before)).collect::<Result<_, _>>()?;
        let provenance = self.calibration.provenance();
        let watch = Watch {
            max_moment_dim: self.step.max_moment_dim,
            n_fitted: provenance.n_fitted,
            held_out: (provenance.n_held_out, HOLD_OUT_SAMPLES),
            seed: provenance.seed,
            damping: TARGET_DAMPING * self.step.damping,
            tensors,
            mul_mat: &TiledMatMul,
        };
        let seen = self.stream.watch(&layers, &watch, &stop).map_err(failed(SEQUENTIAL))?;
        let drift = self.stream.distance().sqrt();
        Ok(Recaptured { inputs: seen.inputs, targets: seen.targets, drift })
    }
}
