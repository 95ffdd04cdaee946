//! Tuning what has been coded as a whole, tensor beside tensor.

use std::collections::BTreeMap;

use calibration::Calibration;
use format::{MatrixId, MatrixShape, Sidecar};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::build::{Build, Finished};
use crate::{
    BuildOptions, Error, Origin, PlanItem, Stage, TensorEncoder, TensorResult, Tuning, WorkFolder,
};

/// A coded tensor that is to be tuned.
pub struct Tunable {
    /// Shape of the matrix.
    pub shape: MatrixShape,
    /// Its code.
    pub sidecars: Vec<Sidecar>,
}

/// What tuning brought.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TuningReport {
    /// Steps done.
    pub steps: usize,
    /// Kullback-Leibler divergence from the source model on held-out text before, nats per token.
    pub divergence_before: f64,
    /// The same afterwards; where it is not smaller, the codes were left as they were.
    pub divergence_after: f64,
}

/// What tuning the FFNs one by one brought: squared errors of what they give on held-out text, as shares of the squares of
/// what brings the hidden state back to where it was, means over the layers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FfnTuningReport {
    /// Steps done in each layer.
    pub steps: usize,
    /// Layers that were tuned.
    pub layers: usize,
    /// Layers whose codes were left as they were, because no step made them better.
    pub layers_left: usize,
    /// Mean error before.
    pub error_before: f64,
    /// The same afterwards.
    pub error_after: f64,
}

/// What a step of tuning brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TuningOutcome {
    /// FFN by FFN.
    Ffn(FfnTuningReport),
    /// All together.
    Whole(TuningReport),
}

/// The same tensors with the same types and shapes, tuned.
pub type Tuned = (BTreeMap<MatrixId, Vec<Sidecar>>, TuningOutcome);

impl Build<'_> {
    /// Takes all coded tensors of `finished` through the method's steps of tuning that have not been done.
    ///
    /// # Errors
    /// As [`crate::Tuning::tune`], or [`Error::Resume`] if a checkpoint is gone.
    pub(crate) fn tune_all(
        &self,
        work: &mut WorkFolder,
        finished: &mut BTreeMap<MatrixId, Finished>,
    ) -> Result<(), Error> {
        let Some(calibration) = self.calibration else { return Ok(()) };
        for tuning in self.method.tunings() {
            self.tune(&*tuning, calibration, work, finished)?;
        }
        Ok(())
    }

    fn tune(
        &self,
        tuning: &dyn Tuning,
        calibration: &Calibration,
        work: &mut WorkFolder,
        finished: &mut BTreeMap<MatrixId, Finished>,
    ) -> Result<(), Error> {
        let coded: Vec<&PlanItem> = self
            .plan
            .items
            .iter()
            .filter(|item| finished[&item.tensor].result.scheme.is_some())
            .collect();
        let stage = |item: &PlanItem| Stage::of(&finished[&item.tensor].result);
        if coded.iter().all(|item| stage(item) >= tuning.stage()) {
            return Ok(());
        }
        let load = |item: &&PlanItem| {
            let sidecars = work.load(item.tensor, stage(item), &item.sidecars)?;
            Ok((item.tensor, Tunable { shape: item.shape, sidecars }))
        };
        let tunable = coded.iter().map(load).collect::<Result<_, Error>>()?;
        let watch = (self.reporter, self.interrupt);
        let tuned = tuning.tune(self.source, calibration, (tunable, work.path()), watch);
        let (mut tuned, outcome) = tuned.map_err(kept)?;
        self.reporter.stage("measuring what was tuned", coded.len() as u64);
        for item in coded {
            let sidecars = tuned.remove(&item.tensor).expect("every tensor comes back");
            let earlier = &finished[&item.tensor].result;
            let result = self.tuned_result(item, earlier, sidecars.clone(), outcome)?;
            work.save(item.tensor, &result, &sidecars)?;
            finished
                .insert(item.tensor, Finished { result, origin: Origin::Built, in_output: false });
            self.reporter.advance(1);
        }
        work.commit()
    }

    /// Errors of a tuned tensor; what is known of its making comes from `earlier`.
    fn tuned_result(
        &self,
        item: &PlanItem,
        earlier: &TensorResult,
        sidecars: Vec<Sidecar>,
        outcome: TuningOutcome,
    ) -> Result<TensorResult, Error> {
        // A code of the weights alone has been measured.
        let options = BuildOptions { eval_plain: false, ..self.options.clone() };
        let encoder = TensorEncoder { options: &options, ..self.encoder(self.calibrated()) };
        let mut result = encoder.measure(item, self.importance(item), sidecars, None)?;
        let functional = |r: &TensorResult| r.metrics.and_then(|m| m.functional);
        let new = result.metrics.as_mut().and_then(|m| m.functional.as_mut());
        if let (Some(old), Some(new)) = (functional(earlier), new) {
            (new.plain, new.shrink) = (old.plain, old.shrink);
        }
        result.seconds += earlier.seconds;
        result.ffn_tuned = earlier.ffn_tuned;
        result.take_down(outcome);
        Ok(result)
    }
}

/// The same error with the way out: what was coded is not lost because it cannot be tuned.
fn kept(error: Error) -> Error {
    match error {
        Error::Program(program::Error::Flag { flag, reason }) => Error::flag(
            flag,
            format!(
                "{reason}; all tensors are coded and kept: the same command with --resume goes on, without {flag} or \
                 with other values for it"
            ),
        ),
        other => other,
    }
}
