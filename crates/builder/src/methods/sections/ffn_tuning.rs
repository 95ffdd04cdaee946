//! `--tune-ffn`: moving the codes of each FFN together, layer by layer, on what the model as coded so far gives it.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::Calibration;
use format::MatrixId;
use program::progress::Eta;
use program::{Interrupt, Reporter};
use whole_model::{FfnErrors, FfnEvent, FfnTuner, TuneParams, stream_bytes};

use super::text::{check_layers, check_memory, check_text, failed, stream};
use super::tuning::{to_parts, to_sidecars};
use crate::{Error, FfnTuningReport, Source, Stage, Tunable, Tuned, Tuning, TuningOutcome};

/// The flag that asks for it.
const TUNE_FFN: &str = "--tune-ffn";

/// What decides about it, as [`super::tuning::values`] gives it.
pub(super) const FLAGS: [&str; 3] = [TUNE_FFN, "--tune-ffn-contexts", "--tune-ffn-rate"];

/// How the FFNs of a finished code are tuned.
#[derive(Clone, Copy, Debug)]
pub struct FfnTuneStep {
    /// Steps and their size.
    pub params: TuneParams,
}

impl Tuning for FfnTuneStep {
    fn stage(&self) -> Stage {
        Stage::FfnTuned
    }

    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error> {
        calibration.map_or(Ok(()), |calibration| check_text(TUNE_FFN, calibration))?;
        let map = source.run_through(tensors);
        check_memory(TUNE_FFN, 3 * stream_bytes(&map, 0))?;
        let way_out = format!("leave out {TUNE_FFN}");
        check_layers((TUNE_FFN, &way_out), (source, calibration), &map, |model| {
            FfnTuner::new((model, source.file(), &map), self.params).map(drop)
        })
    }

    /// Leaves the tensors of layers as they are in which tuning does not help.
    fn tune(
        &self,
        source: &Source,
        calibration: &Calibration,
        (tensors, folder): (BTreeMap<MatrixId, Tunable>, &Path),
        (reporter, interrupt): (&Reporter, &Interrupt),
    ) -> Result<Tuned, Error> {
        let parts = to_parts(&tensors)?;
        let failed = failed(TUNE_FFN);
        let model = source.model().map_err(|e| failed(e.into()))?;
        let ids: Vec<MatrixId> = parts.keys().copied().collect();
        let map = source.run_through(&ids);
        let tuner = FfnTuner::new((model, source.file(), &map), self.params).map_err(&failed)?;
        let mut stream = stream(source, calibration, folder).map_err(&failed)?;
        let n_layers = tuner.layers(ids.into_iter()).len();
        let mut told = Told::new((self.params.steps, n_layers), reporter);
        let stop = || interrupt.is_set();
        let tuned = tuner.run(&mut stream, parts, &mut |event| told.hear(event), &stop);
        let tuned = to_sidecars(tuned.map_err(&failed)?)?;
        Ok((tuned, TuningOutcome::Ffn(told.report(self.params.steps))))
    }
}

/// Tells of steps and layers.
struct Told<'a> {
    errors: Vec<FfnErrors>,
    n_layers: usize,
    eta: Eta,
    reporter: &'a Reporter,
}

impl<'a> Told<'a> {
    fn new((steps, n_layers): (usize, usize), reporter: &'a Reporter) -> Self {
        let total = (steps * n_layers) as u64;
        reporter.stage("tuning FFNs", total);
        Self { errors: Vec::new(), n_layers, eta: Eta::new(total), reporter }
    }

    fn hear(&mut self, event: FfnEvent) {
        match event {
            FfnEvent::Step => {
                self.reporter.advance(1);
                self.eta.advance(1);
            }
            FfnEvent::Layer(layer, errors) => {
                self.errors.push(errors);
                let FfnErrors { before, after } = errors;
                let (n, of, left) = (self.errors.len(), self.n_layers, self.eta.advance(0));
                self.reporter.line(&format!(
                    "[{n}/{of}] FFN of layer {layer} tuned: error {before:.5}, then {after:.5}; ETA {left}"
                ));
            }
        }
    }

    fn report(&self, steps: usize) -> FfnTuningReport {
        let n = self.errors.len().max(1) as f64;
        let kept = |e: &FfnErrors| if e.after < e.before { e.after } else { e.before };
        FfnTuningReport {
            steps,
            layers: self.errors.len(),
            layers_left: self.errors.iter().filter(|e| e.after >= e.before).count(),
            error_before: self.errors.iter().map(|e| e.before).sum::<f64>() / n,
            error_after: self.errors.iter().map(kept).sum::<f64>() / n,
        }
    }
}
