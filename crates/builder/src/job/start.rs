//! What a build starts from: everything opened and checked before anything takes long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;

use super::request::{CALIB, Job};
use crate::{
    Allocation, Error, Existing, ExistingOutput, Importance, Method, Plan, Record, Source,
    WorkFolder, prepare,
};

/// What a job has opened.
pub(super) struct Start {
    pub(super) existing: Option<ExistingOutput>,
    /// Takes the place of the job's method once a budget has been shared out.
    pub(super) allocated: Option<Box<dyn Method>>,
    pub(super) plan: Plan,
    pub(super) importance: Option<BTreeMap<MatrixId, Importance>>,
    pub(super) calibration: Option<Calibration>,
    /// The input's hash is still missing.
    pub(super) record: Option<Record>,
    /// What does not keep the job from being done, but should be told.
    pub(super) warnings: Vec<String>,
}

/// What an earlier run has left, by the names and records of it.
#[derive(Default)]
struct Earlier {
    /// The output's path.
    path: PathBuf,
    output: Option<ExistingOutput>,
    /// Checkpoints of the work folder.
    checkpoints: Vec<MatrixId>,
    /// Record of the work folder, if it has checkpoints.
    work: Option<Record>,
}

impl Start {
    /// Refuses what cannot work, as far as it can be known without reading weights: the one place for that, for builds
    /// and dry runs. Nothing is written. `with_record` asks for the record also where there is nothing to compare
    /// it with, which reads the imatrix or the calibration from end to end.
    ///
    /// # Errors
    /// [`Error`] with what is in the way.
    pub(super) fn of(job: &Job, source: &Source, with_record: bool) -> Result<Self, Error> {
        let output = job.output.as_deref();
        job.check_files(source)?;
        prepare::check_architecture(source)?;
        let earlier = output.map(|path| Earlier::of(job, path)).transpose()?.unwrap_or_default();
        if let Some(output) = output {
            WorkFolder::check(&WorkFolder::path_for(output, job.kind))?;
        }
        let available: Vec<MatrixId> = source.matrices().collect();
        let mut tensors: BTreeSet<MatrixId> = source.select(&job.selection)?.into_iter().collect();
        tensors.extend(earlier.tensors().filter(|t| available.contains(t)));
        let tensors: Vec<MatrixId> = tensors.into_iter().collect();
        let calibration = job.calibration(source, &tensors)?;
        check_steps(&*job.method, source, calibration.as_ref(), &tensors)?;
        earlier.check_growth(&tensors, &*job.method)?;
        let importance = job.imatrix_importance(source, &tensors)?;
        let mut plan = Plan::new(source, &tensors, &*job.method, job.seed)?;
        if let Some(output) = output {
            prepare::check_room(output, source, &plan, &job.room())?;
        }
        let wants_record = with_record || !earlier.is_empty();
        let record = || job.record(source, calibration.as_ref());
        let mut record = wants_record.then(record).transpose()?;
        let mut warnings = Vec::new();
        let mut allocated = None;
        if let (Some(record), Some(output)) = (&mut record, output) {
            if let Some(budget) = job.method.budget()
                && let Some(allocation) = earlier.allocation(&tensors)?
            {
                allocation.record(record);
                let method = budget.with_allocation(&allocation);
                plan = Plan::new(source, &tensors, &*method, job.seed)?;
                prepare::check_room(output, source, &plan, &job.room())?;
                allocated = Some(method);
            }
            record.planned = tensors.iter().map(|t| t.stem()).collect();
            if calibration.is_none() && job.making().is_some() {
                earlier.lend_calibration(record);
            }
            warnings = earlier.check_record(record, &*job.method, output, job.kind)?;
        }
        let Earlier { output: existing, .. } = earlier;
        Ok(Self { existing, allocated, plan, importance, calibration, record, warnings })
    }
}

/// Checks what follows the coding of single tensors, or goes along with it, as far as that can be known. A calibration that
/// is still to be made will be one of this model.
fn check_steps(
    method: &dyn Method,
    source: &Source,
    calibration: Option<&Calibration>,
    tensors: &[MatrixId],
) -> Result<(), Error> {
    if let Some(sequence) = method.sequence() {
        sequence.check(source, calibration, tensors)?;
    }
    method.tunings().iter().try_for_each(|tuning| tuning.check(source, calibration, tensors))
}

impl Earlier {
    /// What there is of `output`; an error if the job is not to go on with it and it is in the way.
    fn of(job: &Job, output: &Path) -> Result<Self, Error> {
        let folder = WorkFolder::path_for(output, job.kind);
        match job.existing {
            Existing::Replace => Ok(Self::default()),
            Existing::Refuse => {
                let in_the_way =
                    [output, &folder].into_iter().find(|p| p.symlink_metadata().is_ok());
                in_the_way.map_or(Ok(Self::default()), |path| {
                    Err(Error::Exists { path: path.to_owned() })
                })
            }
            Existing::Resume => {
                let mut checkpoints = WorkFolder::tensors_in(&folder);
                let work = WorkFolder::record_in(&folder).filter(|_| !checkpoints.is_empty());
                // Without a record nothing tells what they belong to.
                checkpoints.retain(|_| work.is_some());
                let path = output.to_owned();
                Ok(Self { path, output: ExistingOutput::open(output)?, checkpoints, work })
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.output.is_none() && self.work.is_none()
    }

    /// Finished tensors.
    fn tensors(&self) -> impl Iterator<Item = MatrixId> {
        let in_output = self.output.iter().flat_map(ExistingOutput::tensors);
        in_output.chain(self.checkpoints.iter().copied())
    }

    /// What a budget was shared out to, of which exactly `tensors` must have got their share.
    fn allocation(&self, tensors: &[MatrixId]) -> Result<Option<Allocation>, Error> {
        let recorded = self.output.as_ref().map(ExistingOutput::record).or(self.work.as_ref());
        let allocation = Allocation::of(recorded);
        if let Some(allocation) = &allocation {
            allocation.check_covers(tensors, &self.path)?;
        }
        Ok(allocation)
    }

    /// Puts down in `record` the calibration that earlier work is fitted to: the one that is still to be made must turn out
    /// the same.
    fn lend_calibration(&self, record: &mut Record) {
        let earlier = self.output.as_ref().map(ExistingOutput::record).or(self.work.as_ref());
        if let Some(known) = earlier.and_then(|earlier| earlier.arguments.get(CALIB)) {
            record.arguments.insert(CALIB.to_owned(), known.clone());
        }
    }

    /// Checks that what is finished may grow to `tensors` where single tensors depend on others.
    fn check_growth(&self, tensors: &[MatrixId], method: &dyn Method) -> Result<(), Error> {
        if let Some(output) = self.output.as_ref().filter(|_| !method.tunings().is_empty()) {
            let known: BTreeSet<MatrixId> = output.tensors().collect();
            if tensors.iter().any(|t| !known.contains(t)) {
                return Err(Error::tuned_as_a_whole(&self.path));
            }
        }
        if method.sequence().is_some() { self.check_order(tensors) } else { Ok(()) }
    }

    /// Checks that each of `tensors` was known of when those behind it were finished: they were fitted to the model with
    /// all that comes before them.
    fn check_order(&self, tensors: &[MatrixId]) -> Result<(), Error> {
        let Some(last) = self.tensors().max() else { return Ok(()) };
        // Work folders of earlier versions do not tell.
        let planned = self.work.as_ref().map(|r| &r.planned).filter(|p| !p.is_empty());
        let in_output = |t| self.output.iter().any(|o| o.tensors().any(|known| known == t));
        let was_known = |t: MatrixId| {
            let in_folder = match planned {
                Some(planned) => planned.contains(&t.stem()),
                None => self.work.is_some(),
            };
            in_folder || in_output(t)
        };
        match tensors.iter().find(|t| **t < last && !was_known(**t)) {
            None => Ok(()),
            Some(new) => {
                let reason = format!(
                    "{last} is finished and was fitted to the model before it (--sequential), {new} cannot be put in \
                     front of it: give only --layers behind it, or start anew with --force"
                );
                Err(Error::Resume { path: self.path.clone(), reason })
            }
        }
    }

    /// Checks that a run described by `record` may go on with what is there, and completes `record` by what it must
    /// remember of it; the warnings.
    fn check_record(
        &self,
        record: &mut Record,
        method: &dyn Method,
        output: &Path,
        kind: &str,
    ) -> Result<Vec<String>, Error> {
        let mut warnings = Vec::new();
        if let Some(earlier) = self.output.as_ref().map(ExistingOutput::record) {
            record.check_arguments(earlier, output, |n, r, g| method.may_change(n, r, g))?;
            warnings.extend(record.take_over_machines(earlier, output));
        }
        if let Some(earlier) = &self.work {
            let folder = WorkFolder::path_for(output, kind);
            record.check_checkpoints(earlier, &folder, method)?;
            record.planned.extend(earlier.planned.iter().cloned());
            warnings.extend(record.take_over_machines(earlier, &folder));
        }
        Ok(warnings)
    }
}
