//! A running job: everything that is open, and the steps of a build in their order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use calibration::Calibration;
use format::MatrixId;

use super::Job;
use super::start::Start;
use crate::calibrated::read_importance;
use crate::error::io;
use crate::report::{BuildReport, FileReport, SCHEMA_VERSION};
use crate::table::print_line;
use crate::{
    Assembly, Build, Error, ExistingOutput, Finished, Importance, Interrupt, Method, Origin, Plan,
    Record, Reporter, Source, Survey, WorkFolder, explain_bus_errors, files, open_work_folder,
    publish,
};

/// What a running job has opened.
pub(super) struct Session<'a> {
    job: &'a Job,
    source: &'a Source,
    output: &'a Path,
    existing: Option<ExistingOutput>,
    /// Takes the place of the job's method once a budget has been shared out.
    pub(super) allocated: Option<Box<dyn Method>>,
    pub(super) plan: Plan,
    importance: Option<BTreeMap<MatrixId, Importance>>,
    calibration: Option<Calibration>,
    record: Record,
    pub(super) reporter: Reporter,
    pub(super) interrupt: Interrupt,
    start: Instant,
}

impl<'a> Session<'a> {
    /// Opens everything and refuses what cannot work, before anything takes long.
    pub(super) fn open(job: &'a Job, source: &'a Source, output: &'a Path) -> Result<Self, Error> {
        let start = Instant::now();
        let opened = Start::of(job, source, true)?;
        let notice = format!("{}: stopping after the tensor in hand", job.tool);
        let interrupt = Interrupt::install(notice).map_err(io(output, "watch for signals"))?;
        explain_bus_errors(job.tool, &job.input).map_err(io(output, "watch for signals"))?;
        let session = Self {
            job,
            source,
            output,
            existing: opened.existing,
            allocated: opened.allocated,
            plan: opened.plan,
            importance: opened.importance,
            calibration: opened.calibration,
            record: opened.record.expect("it was asked for"),
            reporter: Reporter::new(),
            interrupt,
            start,
        };
        opened.warnings.iter().for_each(|warning| session.warn(warning));
        if let Some(note) = source.mtp_note(&session.plan.tensors(), job.inputs().is_some()) {
            session.reporter.line(&note);
        }
        Ok(session)
    }

    fn warn(&self, warning: &str) {
        self.reporter.line(&format!("{}: warning: {warning}", self.job.tool));
    }

    /// Reads the input once to know its hash, and checks that the calibration and earlier work belong to it.
    pub(super) fn identify_input(&mut self) -> Result<(), Error> {
        self.record.input_sha256 = self.source.sha256(&self.reporter, &self.interrupt)?;
        if let Some(calibration) = &self.calibration {
            calibration.check_model(&self.source.model_id(self.record.input_sha256.clone())?)?;
        }
        match &self.existing {
            Some(earlier) => self.record.check_input(earlier.record(), self.output),
            None => Ok(()),
        }
    }

    /// Reads and checks the activations of the calibration, if there are any.
    pub(super) fn read_calibration(&mut self) -> Result<(), Error> {
        let calibration = self.calibration.as_ref().filter(|c| c.has_inputs());
        if let (Some(calibration), Some((_, shaping))) = (calibration, &self.job.calib) {
            let tensors = self.plan.tensors();
            let watch = (&self.reporter, &self.interrupt);
            self.importance =
                Some(read_importance(calibration, self.source, &tensors, *shaping, watch)?);
        }
        Ok(())
    }

    /// The method, with its share of the budget for every tensor if there is one.
    fn method(&self) -> &dyn Method {
        self.allocated.as_deref().unwrap_or(&*self.job.method)
    }

    /// Shares out the budget and plans anew.
    pub(super) fn allocate(&mut self) -> Result<(), Error> {
        let survey = Survey {
            source: self.source,
            plan: &self.plan,
            importance: self.importance.as_ref(),
            calibration: self.calibration.as_ref(),
            options: &self.job.options,
            mul_mat: &self.job.use_threads(),
            reporter: &self.reporter,
            interrupt: &self.interrupt,
        };
        let allocation = self.job.method.allocate(&survey)?;
        allocation.record(&mut self.record);
        let method = self.job.method.with_allocation(&allocation);
        self.plan = Plan::new(self.source, &self.plan.tensors(), &*method, self.job.seed)?;
        self.allocated = Some(method);
        Ok(())
    }

    pub(super) fn build(&self) -> Result<(), Error> {
        let job = self.job;
        let path = WorkFolder::path_for(self.output, job.kind);
        let mut work = open_work_folder(
            &path,
            job.existing,
            job.checkpoint_every,
            &self.record,
            self.method(),
        )?;
        if let Some(warning) = work.warning() {
            self.warn(warning);
        }
        let mul_mat = job.use_threads();
        let build = Build {
            source: self.source,
            plan: &self.plan,
            method: self.method(),
            options: &job.options,
            importance: self.importance.as_ref(),
            calibration: self.calibration.as_ref(),
            mul_mat: &mul_mat,
            reporter: &self.reporter,
            interrupt: &self.interrupt,
        };
        let made = self.make(&build, &mut work);
        self.reporter.finish();
        let finished = match made {
            Ok(finished) => finished,
            Err(error) => return Err(self.abandon(error, work)),
        };
        work.remove()?;
        self.report(&build, &finished)
    }

    /// Finishes all tensors and puts the output in place.
    fn make(
        &self,
        build: &Build<'_>,
        work: &mut WorkFolder,
    ) -> Result<BTreeMap<MatrixId, Finished>, Error> {
        let existing = self.existing.as_ref();
        let mut finished = build.encode_all(work, existing)?;
        if finished.values().all(|f| f.origin == Origin::Output) {
            self.reporter.line("the output holds all of these tensors already");
            return Ok(finished);
        }
        build.tune_all(work, &mut finished)?;
        let assembly = Assembly::new(build, &finished, work, existing, &self.record)?;
        assembly.write_part()?;
        self.source.check_unchanged(&self.record.input_sha256, &self.reporter, &self.interrupt)?;
        publish(work, self.output)?;
        Ok(finished)
    }

    /// Leaves no trace of a build that finished nothing; else says how to go on.
    fn abandon(&self, error: Error, work: WorkFolder) -> Error {
        let (path, n_kept) = (work.path().to_owned(), work.n_kept());
        if n_kept == 0 {
            // The first error is the one to report.
            let _ = work.remove();
            return if self.interrupt.is_set() { Error::Stopped } else { error };
        }
        let _ = std::fs::remove_file(work.part());
        match error {
            Error::Stopped => {
                let total = self.plan.items.len();
                Error::Interrupted { path, finished: n_kept, total }
            }
            error @ (Error::Io { .. } | Error::Write { .. }) => {
                Error::Kept { error: Box::new(error), finished: n_kept, path }
            }
            other => other,
        }
    }

    fn report(
        &self,
        build: &Build<'_>,
        finished: &BTreeMap<MatrixId, Finished>,
    ) -> Result<(), Error> {
        let n_bytes = std::fs::metadata(self.output).map_err(io(self.output, "read"))?.len();
        let file = |path: &Path, bytes, sha256| FileReport {
            path: path.display().to_string(),
            bytes,
            sha256,
        };
        let report = BuildReport {
            schema_version: SCHEMA_VERSION,
            tool: self.record.tool.clone(),
            tool_version: self.record.tool_version.clone(),
            llama_cpp: self.record.llama_cpp.clone(),
            input: file(
                &self.job.input,
                self.source.n_bytes(),
                Some(self.record.input_sha256.clone()),
            ),
            output: file(self.output, n_bytes, None),
            arguments: self.record.arguments.clone(),
            threads: self.job.n_threads,
            resumed: finished.values().any(|f| f.origin != Origin::Built),
            seconds: self.start.elapsed().as_secs_f64(),
            tensors: build.tensor_reports(finished),
            tuning: finished.values().find_map(|f| f.result.tuned),
            totals: build.totals(finished),
        };
        if let Some(path) = &self.job.report_json {
            let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
            files::write_atomically(path, (text + "\n").as_bytes())?;
        }
        print_line(&report.text()).map_err(io(Path::new("stdout"), "write"))
    }
}
