//! A whole build: take over what is finished, encode the rest, put the output together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use calibration::Calibration;
use format::MatrixId;
use numerics::MatMul;
use program::progress::Eta;
use program::{Interrupt, Reporter};

use crate::existing::ExistingOutput;
use crate::recapturing::Recapturing;
use crate::work::Existing;
use crate::{
    Encoder, Error, Importance, Inputs, Method, Origin, Plan, PlanItem, Record, Source, Stage,
    Steps, TensorResult, WorkFolder,
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
    /// Finishes every tensor of the plan, with checkpoints in `work`, using what `work` and `existing`
    /// hold already.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if asked to stop, or what goes wrong; finished tensors are kept.
    pub fn encode_all(
        &self,
        work: &mut WorkFolder,
        existing: Option<&ExistingOutput>,
    ) -> Result<BTreeMap<MatrixId, Finished>, Error> {
        let mut finished = self.take_over(work, existing)?;
        if let Some(output) = existing.filter(|_| self.method.tuning().is_some())
            && finished.values().any(|f| f.origin == Origin::Output)
            && self
                .plan
                .items
                .iter()
                .any(|i| finished.get(&i.tensor).is_none_or(|f| f.origin != Origin::Output))
        {
            // One of its tensors is damaged: the others cannot be tuned with it again.
            return Err(Error::tuned_as_a_whole(output.file().path()));
        }
        let todo: Vec<&PlanItem> =
            self.plan.items.iter().filter(|i| !finished.contains_key(&i.tensor)).collect();
        let layers: BTreeSet<usize> = todo.iter().map(|i| i.tensor.layer).collect();
        self.reporter.start(layers.len(), todo.len());
        let mut eta = Eta::new(todo.iter().map(|i| i.shape.n_weights() as u64).sum());
        let mut recapture = Recapturing::new(self, work.path())?;
        for (n, item) in todo.iter().enumerate() {
            self.stop_if_asked(work, finished.len())?;
            let inputs = recapture.inputs(item, work, existing, &finished)?;
            let layers_done = layers.iter().position(|l| *l == item.tensor.layer).unwrap_or(0);
            self.reporter.tensor(item.tensor.layer, layers_done, &item.tensor.stem());
            let encoder = self.encoder(inputs);
            let (result, sidecars) = encoder.encode(item, self.importance(item))?;
            work.save(item.tensor, &result, &sidecars)?;
            let left = eta.advance(item.shape.n_weights() as u64);
            self.reporter.tensor_done(&done_line(item, &result, n + 1, todo.len(), &left));
            finished
                .insert(item.tensor, Finished { result, origin: Origin::Built, in_output: false });
        }
        work.commit()?;
        Ok(finished)
    }

    pub(crate) fn encoder<'a>(&'a self, inputs: Option<&'a dyn Inputs>) -> Encoder<'a> {
        Encoder {
            source: self.source,
            method: self.method,
            options: self.options,
            inputs,
            mul_mat: self.mul_mat,
            progress: Steps(self.reporter),
        }
    }

    /// Whether tensors were fitted to, and measured on, other activations than those of the calibration.
    fn sees_other_inputs(&self) -> bool {
        self.method.sequence().is_some() && self.method.tuning().is_none()
    }

    pub(crate) fn importance(&self, item: &PlanItem) -> Option<&Importance> {
        self.importance.and_then(|all| all.get(&item.tensor))
    }

    /// Says how to go on if a stop was asked for, after making everything so far last.
    fn stop_if_asked(&self, work: &mut WorkFolder, n_finished: usize) -> Result<(), Error> {
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

    /// The tensors of the plan that need not be encoded.
    fn take_over(
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
        let mut coded = work.finished(Stage::Coded)?;
        let tuned = work.finished(Stage::Tuned)?;
        let settled = |item: &PlanItem| {
            let stays_dense = coded.get(&item.tensor).is_some_and(|r| r.scheme.is_none());
            stays_dense || tuned.contains_key(&item.tensor)
        };
        if self.plan.items.iter().all(settled) {
            coded.extend(tuned);
        }
        Ok(coded)
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

impl Finished {
    pub(crate) fn new(result: TensorResult, origin: Origin) -> Self {
        Self { result, origin, in_output: false }
    }
}

/// `[ 3/90] blk.1.ffn_up: gap 0.412, 3.12 bits/weight, 1.2 s; ETA 2 min 05 s`.
fn done_line(item: &PlanItem, result: &TensorResult, n: usize, total: usize, eta: &str) -> String {
    let outcome = match result.scheme {
        Some(_) => format!("{:.2} bits/weight", item.bits_per_weight()),
        None => "above --gap-tol, stays dense".to_owned(),
    };
    format!(
        "[{n:>width$}/{total}] {}: gap {:.4}, {outcome}, {}; ETA {eta}",
        item.tensor,
        result.gap,
        program::progress::duration(result.seconds),
        width = total.to_string().len(),
    )
}

/// Opens the work folder of a run described by `record` and checks that it may continue what is there.
///
/// # Errors
/// [`Error::Exists`], [`Error::Locked`], [`Error::Parameter`], [`Error::OtherInput`] or [`Error::Program`].
pub fn open_work_folder(
    path: &Path,
    existing: Existing,
    checkpoint_every: usize,
    record: &Record,
    method: &dyn Method,
) -> Result<WorkFolder, Error> {
    let work = WorkFolder::open(path, existing, checkpoint_every)?;
    match work.record()? {
        Some(earlier) if work.n_kept() > 0 => {
            record.check_checkpoints(&earlier, path, method)?;
            record.check_input(&earlier, path)?;
            if record.changes_later_step(&earlier, method) {
                work.forget(Stage::Tuned)?;
            }
        }
        // Without a record nothing tells what checkpoints belong to; without checkpoints the record binds nobody.
        _ => Stage::ALL.into_iter().try_for_each(|stage| work.forget(stage))?,
    }
    match work.set_record(record) {
        Err(error) if work.n_kept() == 0 => {
            // An empty folder would be in the way of the next run. The first error is the one to report.
            let _ = work.remove();
            Err(error)
        }
        result => result.map(|()| work),
    }
}
