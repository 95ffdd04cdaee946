//! `--tune`: moving the finished codes together, against the source model.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::{Calibration, PassageKind};
use format::{CodecError, MatrixId, Sidecar};
use program::progress::Eta;
use program::{Interrupt, Reporter};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sections::SectionsParts;
use whole_model::{Listener, TuneParams, Tuner};

use super::text::{check_step, contexts, failed, unsigned};
use crate::{Error, Source, Stage, Tunable, Tuned, Tuning, TuningOutcome, TuningReport};

/// Contexts that tell whether tuning helped, at most.
const MEASURED_CONTEXTS: usize = 12;

/// Tokens of a context where nothing else is asked of a calibration.
const USUAL_N_CTX: usize = 512;

/// The flag that asks for it.
const TUNE: &str = "--tune";

/// What decides about tuning, which comes after everything else.
pub(super) const FLAGS: [&str; 3] = [TUNE, "--tune-contexts", "--tune-rate"];

/// How a finished code is tuned.
#[derive(Clone, Copy, Debug)]
pub struct TuneStep {
    /// Steps and their size.
    pub params: TuneParams,
    /// Orders the text that is tuned on.
    pub seed: u64,
}

/// Values of the three flags that ask for tuning with `params`.
pub(super) fn values(params: TuneParams) -> [String; 3] {
    let TuneParams { steps, contexts, rate } = params;
    [steps.to_string(), contexts.to_string(), rate.to_string()]
}

impl Tuning for TuneStep {
    fn stage(&self) -> Stage {
        Stage::Tuned
    }

    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error> {
        let n_ctx = calibration.map_or(USUAL_N_CTX, |c| c.provenance().n_ctx as usize);
        let step = (self.params.contexts, n_ctx);
        check_step(TUNE, (source, calibration), |model| model.tuner_bytes(tensors, step))
    }

    /// Leaves the tensors as they are if tuning does not help.
    fn tune(
        &self,
        source: &Source,
        calibration: &Calibration,
        (tensors, _): (BTreeMap<MatrixId, Tunable>, &Path),
        (reporter, interrupt): (&Reporter, &Interrupt),
    ) -> Result<Tuned, Error> {
        let params = self.params;
        let (mut fitted, mut held_out) = (Vec::new(), Vec::new());
        for (kind, context) in contexts(calibration) {
            match kind {
                PassageKind::Fitted => fitted.push(unsigned(context)),
                PassageKind::HeldOut => held_out.push(unsigned(context)),
            }
        }
        fitted.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        held_out.truncate(MEASURED_CONTEXTS);
        let parts = to_parts(&tensors)?;
        let mut tuner = Tuner::new(source.file(), parts).map_err(failed(TUNE))?;
        reporter.stage("tuning", params.steps as u64);
        let eta = Eta::new(params.steps as u64);
        let mut told = Told { steps: params.steps, eta, reporter, interrupt };
        let report = tuner.run(params, &fitted, &held_out, &mut told).map_err(failed(TUNE))?;
        let outcome = TuningOutcome::Whole(TuningReport {
            steps: params.steps,
            divergence_before: report.before,
            divergence_after: report.after,
        });
        if report.after >= report.before {
            let left = tensors.into_iter().map(|(t, tunable)| (t, tunable.sidecars));
            return Ok((left.collect(), outcome));
        }
        Ok((to_sidecars(tuner.into_parts())?, outcome))
    }
}

/// The codes of `tensors`.
pub(super) fn to_parts(
    tensors: &BTreeMap<MatrixId, Tunable>,
) -> Result<BTreeMap<MatrixId, SectionsParts>, Error> {
    let read = |(id, tunable): (&MatrixId, &Tunable)| {
        let parts = SectionsParts::read(&tunable.sidecars, tunable.shape);
        Ok((*id, parts.map_err(codec_error(*id))?))
    };
    tensors.iter().map(read).collect()
}

/// The same, as they are stored.
pub(super) fn to_sidecars(
    parts: BTreeMap<MatrixId, SectionsParts>,
) -> Result<BTreeMap<MatrixId, Vec<Sidecar>>, Error> {
    let write = |(id, parts): (MatrixId, SectionsParts)| {
        Ok((id, parts.to_sidecars().map_err(codec_error(id))?))
    };
    parts.into_iter().map(write).collect()
}

fn codec_error(tensor: MatrixId) -> impl Fn(CodecError) -> Error {
    move |cause| Error::Codec { tensor: tensor.weight(), cause }
}

/// Tells of every step.
struct Told<'a> {
    steps: usize,
    eta: Eta,
    reporter: &'a Reporter,
    interrupt: &'a Interrupt,
}

impl Listener for Told<'_> {
    fn step(&mut self, number: usize, loss: f64) {
        self.reporter.advance(1);
        let left = self.eta.advance(1);
        let steps = self.steps;
        let line = format!("tuning step {number} of {steps}: divergence {loss:.4}; ETA {left}");
        self.reporter.line(&line);
    }

    fn stops(&mut self) -> bool {
        self.interrupt.is_set()
    }
}
