//! `--sequential`: what the next matrices will see, with the model as coded so far.

use calibration::{Calibration, Sampling};
use clap::ValueEnum;
use format::{InputRole, MatrixId, Role};
use ggml::MulMat;
use program::progress::Eta;
use program::{Interrupt, Reporter};
use whole_model::{FfnWeights, LayerFfn, Llama, Stream, Watch};

use super::text::{check_step, contexts, failed};
use crate::{Decoded, Error, Recapture, Recaptured, Sequence, Source};

/// Held-out inputs kept one by one of every recaptured matrix.
const HOLD_OUT_SAMPLES: u64 = 512;

/// The flag that asks for it.
const SEQUENTIAL: &str = "--sequential";

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
#[derive(Clone, Copy, Debug)]
pub struct SequentialParams {
    /// Layers between two recaptures.
    pub every: usize,
    /// How much the tokens count.
    pub weights: Weighing,
}

/// Recapturing with what it takes from the method.
#[derive(Clone, Copy, Debug)]
pub(super) struct SequentialStep {
    pub(super) params: SequentialParams,
    /// Inputs up to this length get a moment and a target.
    pub(super) max_moment_dim: usize,
    /// With which moments are inverted.
    pub(super) damping: f64,
    /// Whether the calibration's own activations are of no use.
    pub(super) needs_text_only: bool,
}

impl Sequence for SequentialStep {
    fn check(
        &self,
        source: &Source,
        calibration: &Calibration,
        _tensors: &[MatrixId],
    ) -> Result<(), Error> {
        let less = " or a calibration of less text (--tokens)";
        let needed = |model: &whole_model::Outline, n_tokens| model.stream_bytes(n_tokens);
        check_step(SEQUENTIAL, (source, calibration), needed, less)
    }

    fn needs_text_only(&self) -> bool {
        self.needs_text_only
    }

    fn recapture<'a>(
        &self,
        source: &'a Source,
        calibration: &'a Calibration,
        watch: (&'a Reporter, &'a Interrupt),
    ) -> Result<Box<dyn Recapture + 'a>, Error> {
        Ok(Box::new(Sequential::new(*self, (source, calibration), watch)?))
    }
}

/// The model with its calibration text between two layers.
struct Sequential<'a> {
    step: SequentialStep,
    source: &'a Source,
    stream: Stream,
    sampling: Sampling,
    mul_mat: MulMat,
    reporter: &'a Reporter,
    interrupt: &'a Interrupt,
}

impl<'a> Sequential<'a> {
    /// Recaptures on the text behind `calibration`.
    ///
    /// # Errors
    /// [`Error::Program`].
    fn new(
        step: SequentialStep,
        (source, calibration): (&'a Source, &Calibration),
        (reporter, interrupt): (&'a Reporter, &'a Interrupt),
    ) -> Result<Self, Error> {
        let record = calibration.record();
        let contexts = contexts(calibration);
        let model = Llama::load(source.file()).map_err(failed(SEQUENTIAL))?;
        let stream = Stream::new(model, contexts.iter().map(|(kind, c)| (*kind, c.as_slice())));
        Ok(Self {
            step,
            source,
            stream: stream.map_err(failed(SEQUENTIAL))?,
            sampling: Sampling::new(
                (record.n_fitted, record.n_fitted),
                (record.n_held_out, HOLD_OUT_SAMPLES),
                record.seed,
            ),
            mul_mat: MulMat::on_rayon(rayon::current_num_threads()),
            reporter,
            interrupt,
        })
    }

    /// Weighs the tokens of all contexts, which must be before the first layer.
    fn weigh(&mut self) -> Result<(), Error> {
        let total = self.stream.n_weighing_steps();
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
        let file = self.source.file();
        self.stream.weigh(&|layer| Llama::ffn(file, layer), &mut heard).map_err(failed(SEQUENTIAL))
    }

    /// The FFN of `layer`, with what `decoded` puts in place of the source's matrices.
    fn layer(&self, layer: usize, decoded: &mut Decoded<'_>) -> Result<LayerFfn, Error> {
        let source = Llama::ffn(self.source.file(), layer).map_err(failed(SEQUENTIAL))?;
        let mut coded = None;
        for role in Role::ALL {
            if let Some(dense) = decoded(MatrixId { layer, role })? {
                let ffn: &mut FfnWeights = coded.get_or_insert_with(|| source.clone());
                ffn.replace(role, dense).map_err(failed(SEQUENTIAL))?;
            }
        }
        Ok(LayerFfn { source, coded })
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
        decoded: &mut Decoded<'_>,
    ) -> Result<Recaptured, Error> {
        let stop = || self.interrupt.is_set();
        let layers = tensors.iter().map(|t| t.layer);
        let (first, last) = (layers.clone().min(), layers.max());
        let (Some(first), Some(last)) = (first, last) else { return Ok(Recaptured::default()) };
        if self.step.params.weights == Weighing::Curvature && !self.stream.is_weighed() {
            self.weigh()?;
        }
        while self.stream.layer() < first {
            let ffn = self.layer(self.stream.layer(), decoded)?;
            self.stream.advance(&ffn, &stop).map_err(failed(SEQUENTIAL))?;
        }
        // A resumed run may have some of the group already: what the others are fitted to must not depend on it.
        let mut before = |t| if tensors.contains(&t) { Ok(None) } else { decoded(t) };
        let ffn: Vec<LayerFfn> =
            (first..=last).map(|n| self.layer(n, &mut before)).collect::<Result<_, _>>()?;
        let watch = Watch {
            max_moment_dim: self.step.max_moment_dim,
            sampling: self.sampling.clone(),
            damping: self.step.damping,
            tensors,
            mul_mat: &self.mul_mat,
        };
        let seen = self.stream.watch(&ffn, &watch, &stop).map_err(failed(SEQUENTIAL))?;
        let drift = self.stream.distance().map_err(failed(SEQUENTIAL))?.sqrt();
        Ok(Recaptured { inputs: seen.inputs, targets: seen.targets, drift })
    }
}
