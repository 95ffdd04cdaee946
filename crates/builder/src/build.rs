//! What a build works with, and where its finished tensors are.

use std::collections::BTreeMap;

use calibration::Calibration;
use format::MatrixId;
use numerics::MatMul;
use program::{Interrupt, Reporter};

use crate::existing::ExistingOutput;
use crate::{
    Error, Importance, Inputs, Method, Origin, Plan, PlanItem, Source, Stage, Steps, TensorEncoder,
    TensorResult, WorkFolder,
};

/// What decides the outcome besides the method, see the flags of the same names.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// A larger gap keeps the dense weight.
    pub gap_tol: Option<f32>,
    /// Whether dense weights stay beside the sidecars.
    pub keep_dense: bool,
    /// Random inputs for a measured gap; 0 for none.
    pub eval_cols: usize,
    /// Whether a code of the weights only is made too, to be compared; needs a calibration.
    pub eval_plain: bool,
}

/// Everything a build works with.
pub struct Build<'a> {
    /// The source model.
    pub source: &'a Source,
    /// What to do.
    pub plan: &'a Plan,
    /// The codec's side.
    pub method: &'a dyn Method,
    /// What to do with results.
    pub options: &'a BuildOptions,
    /// Importance of inputs by tensor, for every tensor of the plan that text runs through; `None` if nothing is known.
    pub importance: Option<&'a BTreeMap<MatrixId, Importance>>,
    /// Activations of the same inputs, or the text alone if the method needs no more; `None` without a calibration.
    pub calibration: Option<&'a Calibration>,
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
    /// Where progress goes.
    pub reporter: &'a Reporter,
    /// When to stop.
    pub interrupt: &'a Interrupt,
}

/// A finished tensor and where its data is.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What is known about it.
    pub result: TensorResult,
    /// How it came to be.
    pub origin: Origin,
    /// Whether its sidecars are in the existing output; else they are in the work folder.
    pub in_output: bool,
}

impl Build<'_> {
    pub(crate) fn encoder<'a>(&'a self, inputs: Option<&'a dyn Inputs>) -> TensorEncoder<'a> {
        TensorEncoder {
            source: self.source,
            method: self.method,
            options: self.options,
            inputs,
            mul_mat: self.mul_mat,
            progress: Steps(self.reporter),
        }
    }

    /// Whether tensors were fitted to, and measured on, other activations than those of the calibration.
    pub(crate) fn sees_other_inputs(&self) -> bool {
        self.method.sequence().is_some() && self.method.tunings().is_empty()
    }

    pub(crate) fn importance(&self, item: &PlanItem) -> Option<&Importance> {
        self.importance.and_then(|all| all.get(&item.tensor))
    }

    /// The calibration as a source of activations, if it holds any.
    pub(crate) fn calibrated(&self) -> Option<&dyn Inputs> {
        self.calibration.filter(|c| c.has_inputs()).map(|c| c as &dyn Inputs)
    }

    /// The sidecars of a finished tensor, wherever they are.
    ///
    /// # Errors
    /// [`Error::Resume`] if they are not there any more.
    pub(crate) fn stored(
        &self,
        item: &PlanItem,
        finished: &Finished,
        work: &WorkFolder,
        existing: Option<&ExistingOutput>,
    ) -> Result<Vec<format::Sidecar>, Error> {
        match existing {
            Some(output) if finished.in_output => {
                output.sidecars(item.tensor, &item.sidecars).ok_or_else(|| Error::Resume {
                    path: output.file().path().to_owned(),
                    reason: format!("{} changed while it was being read", item.tensor),
                })
            }
            _ => work.load(item.tensor, Stage::of(&finished.result), &item.sidecars),
        }
    }

    /// What stands for `tensor` so far, if that is not its dense weight.
    pub(crate) fn decoded(
        &self,
        tensor: MatrixId,
        work: &WorkFolder,
        existing: Option<&ExistingOutput>,
        finished: &BTreeMap<MatrixId, Finished>,
    ) -> Result<Option<Vec<f32>>, Error> {
        let item = self.plan.items.iter().find(|item| item.tensor == tensor);
        let coded = finished.get(&tensor).filter(|f| f.result.scheme.is_some());
        let (Some(item), Some(coded)) = (item, coded) else { return Ok(None) };
        let sidecars = self.stored(item, coded, work, existing)?;
        let codec_error = |cause| Error::Codec { tensor: tensor.weight(), cause };
        item.codec.decode(&sidecars, item.shape).map(Some).map_err(codec_error)
    }

    /// Says how to go on if a stop was asked for, after making everything so far last.
    pub(crate) fn stop_if_asked(
        &self,
        work: &mut WorkFolder,
        n_finished: usize,
    ) -> Result<(), Error> {
        if !self.interrupt.is_set() {
            return Ok(());
        }
        work.commit()?;
        Err(Error::Interrupted {
            path: work.path().to_owned(),
            finished: n_finished,
            total: self.plan.items.len(),
        })
    }
}

impl Finished {
    pub(crate) fn new(result: TensorResult, origin: Origin) -> Self {
        Self { result, origin, in_output: false }
    }
}
