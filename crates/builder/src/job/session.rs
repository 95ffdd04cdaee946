//! A running job: everything that is open, and the steps of a build in their order. A dry run is one that stops early.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use calibration::Calibration;
use format::MatrixId;
use numerics::TiledMatMul;
use program::table::{bytes, percent, print_line, saved};
use program::{Interrupt, Reporter, files};

use super::request::{CALIB, Job, hash};
use super::start::Start;
use super::use_threads;
use crate::calibrated::{needs_text_only, open_calibration, read_importance};
use crate::error::io;
use crate::report::{BuildReport, FileReport, SCHEMA_VERSION};
use crate::{
    Assembly, Build, Error, ExistingOutput, Finished, Importance, Method, Origin, Plan, Record,
    Source, Survey, WorkFolder, open_work_folder, prepare, publish,
};

/// What a running job has opened.
pub(super) struct Session<'a> {
    job: &'a Job,
    source: &'a Source,
    existing: Option<ExistingOutput>,
    /// Takes the place of the job's method once a budget has been shared out.
    allocated: Option<Box<dyn Method>>,
    plan: Plan,
    importance: Option<BTreeMap<MatrixId, Importance>>,
    calibration: Option<Calibration>,
    /// What a build writes and how it comes to be, the input's hash missing at the start; `None` in a dry run.
    goal: Option<(&'a Path, Record)>,
    reporter: Reporter,
    pub(super) interrupt: Interrupt,
    start: Instant,
}

impl<'a> Session<'a> {
    /// Opens everything and refuses what cannot work, before anything takes long. `output` is what a build is to write,
    /// `None` for a dry run.
    pub(super) fn open(
        job: &'a Job,
        source: &'a Source,
        output: Option<&'a Path>,
        reporter: Reporter,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let opened = Start::of(job, source, output.is_some())?;
        let session = Self {
            job,
            source,
            existing: opened.existing,
            allocated: opened.allocated,
            plan: opened.plan,
            importance: opened.importance,
            calibration: opened.calibration,
            goal: output.zip(opened.record),
            reporter,
            interrupt: Interrupt::default(),
            start,
        };
        opened.warnings.iter().for_each(|warning| session.warn(warning));
        Ok(session)
    }

    /// All steps of a build.
    pub(super) fn run_to_its_end(&mut self) -> Result<BuildReport, Error> {
        if let Some(note) = self.mtp_note() {
            self.reporter.line(&note);
        }
        self.identify_input()?;
        prepare::check_weights(self.source, &self.plan, &self.reporter, &self.interrupt)?;
        self.make_calibration()?;
        self.read_calibration()?;
        if self.must_allocate() {
            self.allocate()?;
        }
        self.build()
    }

    fn warn(&self, warning: &str) {
        self.reporter.line(&format!("{}: warning: {warning}", self.job.tool));
    }

    fn mtp_note(&self) -> Option<String> {
        self.source.mtp_note(&self.plan.tensors(), self.job.informant().is_some())
    }

    /// Reads the input once to know its hash, and checks that the calibration and earlier work belong to it.
    pub(super) fn identify_input(&mut self) -> Result<(), Error> {
        if self.goal.is_none() && self.calibration.is_none() {
            return Ok(());
        }
        let sha256 = self.source.sha256(&self.reporter, &self.interrupt)?;
        self.check_calibrated(&sha256)?;
        if let Some((output, record)) = &mut self.goal {
            record.input_sha256 = sha256;
            if let Some(earlier) = &self.existing {
                record.check_input(earlier.record(), output)?;
            }
        }
        Ok(())
    }

    /// Checks that the calibration is of the model with the hash `sha256`. One that an earlier build made of another
    /// model is made anew where it may be replaced.
    fn check_calibrated(&mut self, sha256: &str) -> Result<(), Error> {
        let Some(calibration) = &self.calibration else { return Ok(()) };
        let checked = calibration.check_model(&self.source.model_id(sha256.to_owned())?);
        match (checked, self.job.making()) {
            (Err(_), Some(making)) if making.may_be_replaced() => {
                self.calibration = None;
                if let Some((_, record)) = &mut self.goal {
                    record.arguments.remove(CALIB);
                }
                Ok(())
            }
            (Err(_), Some(making)) => Err(making.in_the_way()),
            (checked, _) => Ok(checked?),
        }
    }

    /// Makes the calibration, if the build is to make one and there is none of an earlier run.
    fn make_calibration(&mut self) -> Result<(), Error> {
        let Some(making) = self.job.making().filter(|_| self.calibration.is_none()) else {
            return Ok(());
        };
        let Some((_, record)) = &mut self.goal else { return Ok(()) };
        let path = making.path().expect("a build keeps its calibration").to_owned();
        use_threads(self.job.n_threads);
        let watch = (&self.reporter, &self.interrupt);
        let text_only = needs_text_only(&*self.job.method);
        making.make(self.source, &record.input_sha256, text_only, watch)?;
        let tensors = self.plan.tensors();
        let calibration = open_calibration(&path, self.source, &tensors, &*self.job.method)?;
        let made = format!("sha256:{}", hash(&path)?);
        let known = record.arguments.insert(CALIB.to_owned(), made.clone());
        if known.is_some_and(|known| known != made) {
            let reason = "is not the calibration that the finished tensors were fitted to: put that one back in its place, \
                          or start anew with --force";
            return Err(Error::Resume { path, reason: reason.to_owned() });
        }
        self.reporter.line(&format!(
            "calibration: {} tokens, kept for further builds in {}",
            calibration.provenance().tokens.len(),
            path.display()
        ));
        self.calibration = Some(calibration);
        Ok(())
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

    /// Whether there is a budget that has not been shared out.
    pub(super) fn must_allocate(&self) -> bool {
        self.allocated.is_none() && self.job.method.budget().is_some()
    }

    /// Shares out the budget and plans anew.
    pub(super) fn allocate(&mut self) -> Result<(), Error> {
        let Some(budget) = self.job.method.budget() else { return Ok(()) };
        let survey = Survey {
            source: self.source,
            plan: &self.plan,
            importance: self.importance.as_ref(),
            calibration: self.calibration.as_ref(),
            options: &self.job.options,
            mul_mat: &TiledMatMul,
            reporter: &self.reporter,
            interrupt: &self.interrupt,
        };
        let allocation = budget.allocate(&survey)?;
        if let Some((_, record)) = &mut self.goal {
            allocation.record(record);
        }
        let method = budget.with_allocation(&allocation);
        self.plan = Plan::new(self.source, &self.plan.tensors(), &*method, self.job.seed)?;
        self.allocated = Some(method);
        match &self.goal {
            Some((output, _)) => {
                prepare::check_room(output, self.source, &self.plan, &self.job.room())
            }
            None => Ok(()),
        }
    }

    /// Says which matrices of the final plan would grow, while that can still be changed.
    fn warn_of_growth(&self) {
        for warning in self.plan.growth(&*self.job.method) {
            self.reporter.line(&format!("{}: {warning}", self.job.tool));
        }
    }

    /// Ends a dry run: prints what a build would bring.
    pub(super) fn print_plan(&self) -> Result<(), Error> {
        self.reporter.finish();
        self.warn_of_growth();
        let totals = self.plan.totals();
        let kept = if self.job.options.keep_dense { totals.source_bytes } else { 0 };
        let replaced = totals.source_bytes - kept;
        let file = self.source.n_bytes() - replaced + totals.coded_bytes;
        let text = format!(
            "{}\n\n{}{}Saved: {} of the source's bytes for these tensors, {} of Q5_K_M's.\n\
             Output file: about {} bytes, the input has {}. Nothing was written (--dry-run).",
            self.plan.table().render_for_stdout(),
            self.mtp_note().map_or_else(String::new, |note| note + "\n"),
            self.making_note(),
            percent(saved(totals.coded_bytes + kept, totals.source_bytes)),
            percent(saved(totals.coded_bytes + kept, totals.q5_k_m_bytes)),
            bytes(file),
            bytes(self.source.n_bytes()),
        );
        print_line(&text).map_err(io(Path::new("stdout"), "write"))
    }

    /// What a build would make before anything else.
    fn making_note(&self) -> String {
        let making = self.job.making().filter(|_| self.calibration.is_none());
        making.map_or_else(String::new, |making| {
            format!("A build would first be calibrated on {}.\n", making.describe(self.source))
        })
    }

    /// Codes all tensors and puts the output in place.
    fn build(&self) -> Result<BuildReport, Error> {
        self.warn_of_growth();
        let (job, (output, record)) = (self.job, self.goal.as_ref().expect("a build has a goal"));
        let path = WorkFolder::path_for(output, job.kind);
        let mut work =
            open_work_folder(&path, job.existing, job.checkpoint_every, record, self.method())?;
        if let Some(warning) = work.warning() {
            self.warn(warning);
        }
        use_threads(job.n_threads);
        let build = Build {
            source: self.source,
            plan: &self.plan,
            method: self.method(),
            options: &job.options,
            importance: self.importance.as_ref(),
            calibration: self.calibration.as_ref(),
            mul_mat: &TiledMatMul,
            reporter: &self.reporter,
            interrupt: &self.interrupt,
        };
        let made = self.make(&build, &mut work, (output, record));
        self.reporter.finish();
        let finished = match made {
            Ok(finished) => finished,
            Err(error) => return Err(self.abandon(error, work)),
        };
        work.remove()?;
        self.report(&build, &finished, (output, record))
    }

    /// Finishes all tensors and puts the output in place.
    fn make(
        &self,
        build: &Build<'_>,
        work: &mut WorkFolder,
        (output, record): (&Path, &Record),
    ) -> Result<BTreeMap<MatrixId, Finished>, Error> {
        let existing = self.existing.as_ref();
        let mut finished = build.encode_all(work, existing)?;
        if finished.values().all(|f| f.origin == Origin::Output) {
            self.reporter.line("the output holds all of these tensors already");
            return Ok(finished);
        }
        build.tune_all(work, &mut finished)?;
        let assembly = Assembly::new(build, &finished, work, existing, record)?;
        assembly.write_part()?;
        self.source.check_unchanged(&record.input_sha256, &self.reporter, &self.interrupt)?;
        publish(work, output)?;
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
            error @ (Error::Program(program::Error::Io { .. }) | Error::Write { .. }) => {
                Error::Kept { error: Box::new(error), finished: n_kept, path }
            }
            other => other,
        }
    }

    fn report(
        &self,
        build: &Build<'_>,
        finished: &BTreeMap<MatrixId, Finished>,
        (output, record): (&Path, &Record),
    ) -> Result<BuildReport, Error> {
        let n_bytes = std::fs::metadata(output).map_err(io(output, "read"))?.len();
        let file = |path: &Path, bytes, sha256| FileReport {
            path: path.display().to_string(),
            bytes,
            sha256,
        };
        let report = BuildReport {
            schema_version: SCHEMA_VERSION,
            tool: record.tool.clone(),
            tool_version: record.tool_version.clone(),
            llama_cpp: record.llama_cpp.clone(),
            input: file(&self.job.input, self.source.n_bytes(), Some(record.input_sha256.clone())),
            output: file(output, n_bytes, None),
            arguments: record.arguments.clone(),
            threads: self.job.n_threads,
            resumed: finished.values().any(|f| f.origin != Origin::Built),
            seconds: self.start.elapsed().as_secs_f64(),
            tensors: build.tensor_reports(finished),
            ffn_tuning: finished.values().find_map(|f| f.result.ffn_tuned),
            tuning: finished.values().find_map(|f| f.result.tuned),
            totals: build.totals(finished),
        };
        if let Some(path) = &self.job.report_json {
            let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
            files::write_atomically(path, (text + "\n").as_bytes())?;
        }
        Ok(report)
    }
}
