//! Keeping up with the layers: which activations a tensor is fitted to while the model before it changes.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::Calibration;
use format::MatrixId;

use crate::build::{Build, Finished};
use crate::existing::ExistingOutput;
use crate::{Error, Inputs, PlanItem, Recapture, Recaptured, Sequence, WorkFolder};

/// The activations of the group of tensors in hand.
pub(crate) struct Recapturing<'a> {
    build: &'a Build<'a>,
    recapture: Option<Box<dyn Recapture + 'a>>,
    /// Number of the group and what its tensors see.
    group: Option<(usize, Recaptured)>,
}

impl<'a> Recapturing<'a> {
    /// Asks the method of `build` whether it wants to recapture, with `folder` for its files.
    ///
    /// # Errors
    /// As [`Sequence::recapture`].
    pub(crate) fn new(build: &'a Build<'a>, folder: &Path) -> Result<Self, Error> {
        let begin = |(sequence, calibration): (Box<dyn Sequence + '_>, &'a Calibration)| {
            let watch = (build.reporter, build.interrupt);
            sequence.recapture(build.source, calibration, folder, watch)
        };
        let recapture = build.method.sequence().zip(build.calibration).map(begin).transpose()?;
        Ok(Self { build, recapture, group: None })
    }

    /// What `item` is fitted to; recaptured if it begins a new group.
    ///
    /// # Errors
    /// As [`Recapture::inputs`], or [`Error::Resume`] if a checkpoint is gone.
    pub(crate) fn inputs(
        &mut self,
        item: &PlanItem,
        work: &mut WorkFolder,
        existing: Option<&ExistingOutput>,
        finished: &BTreeMap<MatrixId, Finished>,
    ) -> Result<Option<&dyn Inputs>, Error> {
        let is_mtp = |tensor| self.build.source.is_mtp(tensor);
        let recapture = self.recapture.as_mut().filter(|_| !is_mtp(item.tensor));
        let Some(recapture) = recapture else { return Ok(self.build.calibrated()) };
        let group = recapture.group(item.tensor);
        if self.group.as_ref().is_none_or(|(known, _)| *known != group) {
            work.commit()?;
            let build = self.build;
            build.reporter.stage("running the model as coded so far", 0);
            let mut decoded = |tensor| build.decoded(tensor, work, existing, finished);
            let planned = build.plan.items.iter().map(|item| item.tensor);
            let tensors: Vec<MatrixId> =
                planned.filter(|t| !is_mtp(*t) && recapture.group(*t) == group).collect();
            let inputs = recapture.inputs(&tensors, &mut decoded)?;
            // Down sees the hidden states that gate and up see: they are told of once.
            let told = self.group.as_ref().map_or(0.0, |(_, before)| before.drift);
            if inputs.drift.total_cmp(&told).is_ne() {
                let (tensor, percent) = (item.tensor.stem(), 100.0 * inputs.drift);
                let line = format!("before {tensor}: hidden states are {percent:.2} % off");
                build.reporter.line(&line);
            }
            self.group = Some((group, inputs));
        }
        let (_, inputs) = self.group.as_ref().expect("just captured");
        Ok(Some(inputs))
    }
}
