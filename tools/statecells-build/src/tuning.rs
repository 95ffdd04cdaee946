//! What needs the model itself: tuning a finished code, and recapturing activations on the way.

use std::collections::BTreeMap;

use ::tuning::{
    FfnWeights, LayerFfn, Llama, Outline, Stream, TuneParams, Tuner, TuningError, Watch,
};
use builder::progress::Eta;
use builder::{
    Decoded, Error, Interrupt, Recapture, Recaptured, Reporter, Source, Tunable, Tuned,
    TuningReport,
};
use calibration::{Calibration, PassageKind, Sampling, passage_kind};
use clap::ValueEnum;
use codec::Progress;
use format::{InputRole, MatrixId, Role};
use ggml::MulMat;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use statecells::sections::SectionsParts;

use crate::sections_method::ModelSteps;

/// Held-out inputs kept one by one of every recaptured matrix.
const HOLD_OUT_SAMPLES: u64 = 512;

/// Contexts that tell whether tuning helped, at most.
const MEASURED_CONTEXTS: usize = 12;

/// The flag behind [`tune`].
const TUNE: &str = "--tune";

/// The flag behind [`Sequential`].
const SEQUENTIAL: &str = "--sequential";

fn failed(flag: &'static str) -> impl Fn(TuningError) -> Error {
    move |error| match error {
        TuningError::Stopped => Error::Stopped,
        other => Error::Method { flag, reason: other.to_string() },
    }
}

/// Checks all that can be known of [`tune`] and [`Sequential`] before they are begun, for `tensors` of `source`.
///
/// # Errors
/// [`Error::Method`] with the flag of the step that cannot be done.
pub fn check(
    steps: &ModelSteps,
    (source, calibration): (&Source, &Calibration),
    tensors: &[MatrixId],
) -> Result<(), Error> {
    let n_tokens = calibration.record().tokens.len();
    let flags = [(SEQUENTIAL, steps.sequential.is_some()), (TUNE, steps.tune.is_some())];
    for (flag, _) in flags.into_iter().filter(|(_, wanted)| *wanted) {
        check_text(flag, calibration)?;
        let refuse = |error: TuningError| {
            let reason = format!("{error}: leave out {flag}");
            Error::Method { flag, reason }
        };
        let model = Outline::of(source.file()).map_err(refuse)?;
        model.check_tokens(&calibration.record().tokens).map_err(|error| Error::Method {
            flag,
            reason: format!("{}: {error}: made for another model", calibration.path().display()),
        })?;
        let needed =
            if flag == TUNE { model.tuner_bytes(tensors) } else { model.stream_bytes(n_tokens) };
        check_memory(flag, needed, builder::memory_bytes())?;
    }
    Ok(())
}

/// Checks that a step that needs so many bytes at least is not begun where there are fewer.
fn check_memory(flag: &'static str, needed: u64, there: u64) -> Result<(), Error> {
    if needed <= there {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let less = if flag == TUNE { "" } else { " or a calibration of less text (--tokens)" };
    let reason = format!(
        "needs at least {:.1} GB of memory, this machine has {:.1} with its swap space: leave it out, or take a \
         larger machine{less}",
        gb(needed),
        gb(there)
    );
    Err(Error::Method { flag, reason })
}

/// Checks that `calibration` holds the text it was made from.
fn check_text(flag: &'static str, calibration: &Calibration) -> Result<(), Error> {
    if !calibration.record().tokens.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "{} does not hold the tokens it was made from: make it again with statecells-calib",
        calibration.path().display()
    );
    Err(Error::Method { flag, reason })
}

/// All contexts behind `calibration`, in order.
fn contexts(calibration: &Calibration) -> Vec<(PassageKind, Vec<u32>)> {
    let record = calibration.record();
    let unsigned = |c: &[i32]| c.iter().map(|t| t.unsigned_abs()).collect();
    let contexts = record.tokens.chunks_exact((record.n_ctx as usize).max(1)).enumerate();
    contexts.map(|(i, c)| (passage_kind(i), unsigned(c))).collect()
}

/// Tunes `tensors` against the model in `source`; leaves them as they are if that does not help.
///
/// # Errors
/// [`Error::Method`], [`Error::Codec`] or [`Error::Stopped`].
pub fn tune(
    params: TuneParams,
    seed: u64,
    (source, calibration): (&Source, &Calibration),
    tensors: BTreeMap<MatrixId, Tunable>,
    (reporter, interrupt): (&Reporter, &Interrupt),
) -> Result<Tuned, Error> {
    let (mut fitted, mut held_out) = (Vec::new(), Vec::new());
    for (kind, context) in contexts(calibration) {
        match kind {
            PassageKind::Fitted => fitted.push(context),
            PassageKind::HeldOut => held_out.push(context),
        }
    }
    fitted.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    held_out.truncate(MEASURED_CONTEXTS);
    let codec_error =
        |tensor: MatrixId| move |cause| Error::Codec { tensor: tensor.weight(), cause };
    let mut parts = BTreeMap::new();
    for (tensor, tunable) in &tensors {
        let read = SectionsParts::read(&tunable.sidecars, tunable.shape);
        parts.insert(*tensor, read.map_err(codec_error(*tensor))?);
    }
    let mut tuner = Tuner::new(source.file(), parts).map_err(failed(TUNE))?;
    reporter.stage("tuning", params.steps as u64);
    let mut eta = Eta::new(params.steps as u64);
    let mut heard = |step: usize, loss: f64| {
        reporter.advance(1);
        let left = eta.advance(1);
        let steps = params.steps;
        reporter.line(&format!("tuning step {step} of {steps}: divergence {loss:.4}; ETA {left}"));
        interrupt.is_set()
    };
    let report = tuner.run(params, &fitted, &held_out, &mut heard).map_err(failed(TUNE))?;
    let summary = TuningReport {
        steps: params.steps,
        divergence_before: report.before,
        divergence_after: report.after,
    };
    if report.after >= report.before {
        return Ok((
            tensors.into_iter().map(|(t, tunable)| (t, tunable.sidecars)).collect(),
            summary,
        ));
    }
    let tuned = tuner.into_parts().into_iter();
    let tuned = tuned.map(|(t, parts)| Ok((t, parts.to_sidecars().map_err(codec_error(t))?)));
    Ok((tuned.collect::<Result<_, Error>>()?, summary))
}

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

/// The model with its calibration text between two layers.
pub struct Sequential<'a> {
    params: SequentialParams,
    source: &'a Source,
    stream: Stream,
    max_moment_dim: usize,
    damping: f64,
    sampling: Sampling,
    mul_mat: MulMat,
    reporter: &'a Reporter,
    interrupt: &'a Interrupt,
}

impl<'a> Sequential<'a> {
    /// Recaptures on the text behind `calibration`. Moments are formed of inputs up to `max_moment_dim` and inverted
    /// with `damping`.
    ///
    /// # Errors
    /// [`Error::Method`].
    pub fn new(
        params: SequentialParams,
        (source, calibration): (&'a Source, &Calibration),
        (max_moment_dim, damping): (usize, f64),
        (reporter, interrupt): (&'a Reporter, &'a Interrupt),
    ) -> Result<Self, Error> {
        let record = calibration.record();
        let contexts = contexts(calibration);
        let model = Llama::load(source.file()).map_err(failed(SEQUENTIAL))?;
        let stream = Stream::new(model, contexts.iter().map(|(kind, c)| (*kind, c.as_slice())));
        Ok(Self {
            params,
            source,
            stream: stream.map_err(failed(SEQUENTIAL))?,
            max_moment_dim,
            damping,
            sampling: Sampling::new(
                (record.n_fitted, record.n_fitted),
                (record.n_held_out, HOLD_OUT_SAMPLES),
                record.seed,
            ),
            mul_mat: MulMat::new(rayon::current_num_threads()),
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
        match self.params.every {
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
        if self.params.weights == Weighing::Curvature && !self.stream.is_weighed() {
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
            max_moment_dim: self.max_moment_dim,
            sampling: self.sampling.clone(),
            damping: self.damping,
            tensors,
            mul_mat: &self.mul_mat,
        };
        let seen = self.stream.watch(&ffn, &watch, &stop).map_err(failed(SEQUENTIAL))?;
        let drift = self.stream.distance().map_err(failed(SEQUENTIAL))?.sqrt();
        Ok(Recaptured { inputs: seen.inputs, targets: seen.targets, drift })
    }
}
