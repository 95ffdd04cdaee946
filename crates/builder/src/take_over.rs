//! Which tensors of a plan an earlier run has finished.

use std::collections::BTreeMap;

use format::MatrixId;

use crate::build::{Build, Finished};
use crate::{Error, ExistingOutput, Origin, PlanItem, Stage, TensorResult, WorkFolder};

impl Build<'_> {
    /// The tensors of the plan that need not be encoded.
    pub(crate) fn take_over(
        &self,
        work: &mut WorkFolder,
        existing: Option<&ExistingOutput>,
    ) -> Result<BTreeMap<MatrixId, Finished>, Error> {
        let mut finished = BTreeMap::new();
        let checkpoints = self.checkpoints(work)?;
        for item in &self.plan.items {
            self.stop_if_asked(work, finished.len())?;
            let taken = match checkpoints.get(&item.tensor) {
                Some(result) => self.take_checkpoint(work, item, result)?,
                None => None,
            };
            let taken = match (taken, existing) {
                (None, Some(output)) => self.take_from_output(work, item, output)?,
                (taken, _) => taken,
            };
            if let Some(taken) = taken {
                finished.insert(item.tensor, taken);
            }
        }
        Ok(finished)
    }

    /// The checkpoints to go on with. Tuned tensors belong together: unless all are there, as after a kill while they
    /// were stored, they are tuned again.
    fn checkpoints(&self, work: &WorkFolder) -> Result<BTreeMap<MatrixId, TensorResult>, Error> {
        let mut found = work.finished(Stage::Coded)?;
        for stage in Stage::ALL.into_iter().filter(|stage| *stage > Stage::Coded) {
            let tuned = work.finished(stage)?;
            let settled = |item: &PlanItem| {
                let stays_dense = found.get(&item.tensor).is_some_and(|r| r.scheme.is_none());
                stays_dense || tuned.contains_key(&item.tensor)
            };
            if self.plan.items.iter().all(settled) {
                found.extend(tuned);
            }
        }
        Ok(found)
    }

    /// The tensor from the work folder, completed if its scheme grew; `None` if it must be done again.
    fn take_checkpoint(
        &self,
        work: &mut WorkFolder,
        item: &PlanItem,
        result: &TensorResult,
    ) -> Result<Option<Finished>, Error> {
        let Some(scheme) = &result.scheme else {
            return Ok(Some(Finished::new(result.clone(), Origin::Checkpoint)));
        };
        if scheme == item.codec.scheme() {
            let fits = result.sidecars.iter().eq(item.sidecars.iter());
            return Ok(fits.then(|| Finished::new(result.clone(), Origin::Checkpoint)));
        }
        self.grown((item, scheme), work, |work, specs| {
            work.load(item.tensor, Stage::of(result), specs).map(Some)
        })
    }

    /// The tensor from the existing output, completed if its scheme grew; `None` if it is not there or
    /// damaged.
    fn take_from_output(
        &self,
        work: &mut WorkFolder,
        item: &PlanItem,
        output: &ExistingOutput,
    ) -> Result<Option<Finished>, Error> {
        if let Some(gap) = output.dense_gap(item.tensor) {
            return Ok(Some(Finished::new(TensorResult::dense(gap), Origin::Output)));
        }
        let Some(scheme) = output.scheme(item.tensor) else { return Ok(None) };
        if scheme == item.codec.scheme() {
            let Some(sidecars) = output.sidecars(item.tensor, &item.sidecars) else {
                return Ok(None);
            };
            // The yardstick by which it was coded may be gone: what the file says of it stays.
            let Some(gap) = output.gap(item.tensor) else { return Ok(None) };
            self.reporter.line(&format!("{}: taken from the output", item.tensor));
            let encoder = self.encoder(self.calibrated().filter(|_| !self.sees_other_inputs()));
            let result = encoder.measure(item, self.importance(item), sidecars, Some(gap))?;
            return Ok(Some(Finished { in_output: true, ..Finished::new(result, Origin::Output) }));
        }
        self.grown((item, &scheme), work, |_, specs| Ok(output.sidecars(item.tensor, specs)))
    }
}
