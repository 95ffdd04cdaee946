//! A build from start to end, as a program asks for it.

mod session;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;
use ggml::MulMat;

use crate::calibrated::{open_calibration, read_importance};
use crate::error::io;
use crate::machine::arithmetic;
use crate::table::{bytes, percent, print_line};
use crate::{
    Allocation, BuildOptions, Error, Existing, Importance, Interrupt, Method, Plan, RECORD_VERSION,
    Record, Reporter, Selection, Shaping, Source, Survey, files, prepare, saved,
};
use session::Session;
use start::Start;

/// What to build, checked flag by flag.
pub struct Job {
    /// Name of the program, as it stands in records.
    pub tool: &'static str,
    /// Its version.
    pub tool_version: &'static str,
    /// What the work folder is called after: `OUT.<kind>-work`.
    pub kind: &'static str,
    /// Source model.
    pub input: PathBuf,
    /// File to write; `None` in a dry run.
    pub output: Option<PathBuf>,
    /// Where the JSON report goes.
    pub report_json: Option<PathBuf>,
    /// The codec with its parameters.
    pub method: Box<dyn Method>,
    /// Layers and roles.
    pub selection: Selection,
    /// Importance matrix and how it is used.
    pub imatrix: Option<(PathBuf, Shaping)>,
    /// Calibration, and how its mean squares are used where importance is asked for. Not together with an
    /// importance matrix.
    pub calib: Option<(PathBuf, Shaping)>,
    /// What happens to results.
    pub options: BuildOptions,
    /// Threads.
    pub n_threads: usize,
    /// Seed of everything.
    pub seed: u64,
    /// What to do with earlier work.
    pub existing: Existing,
    /// Tensors between two commits of the work folder.
    pub checkpoint_every: usize,
}

impl Job {
    /// Flags with their effective values: everything that decides the output's bytes, except the input
    /// and the selection. `sha256` stands for the imatrix or the calibration.
    #[must_use]
    pub fn arguments(&self, sha256: Option<&str>) -> BTreeMap<String, String> {
        let mut arguments = self.method.arguments();
        let mut set = |name: &str, value: String| arguments.insert(name.to_owned(), value);
        set("--seed", self.seed.to_string());
        set("--dense", if self.options.keep_dense { "keep" } else { "drop" }.to_owned());
        if let Some(tolerance) = self.options.gap_tol {
            set("--gap-tol", tolerance.to_string());
        }
        if let (Some((flag, _, shaping)), Some(sha256)) = (self.inputs(), sha256) {
            set(flag, format!("sha256:{sha256}"));
            set("--imatrix-eps", shaping.eps.to_string());
            set("--imatrix-power", shaping.power.to_string());
        }
        arguments
    }

    /// The file that tells about the inputs, with its flag.
    fn inputs(&self) -> Option<(&'static str, &Path, Shaping)> {
        let files = [("--imatrix", &self.imatrix), ("--calib", &self.calib)];
        files.into_iter().find_map(|(flag, file)| {
            let (path, shaping) = file.as_ref()?;
            Some((flag, path.as_path(), *shaping))
        })
    }

    /// Checks everything that can be known before the work, without reading weights or writing anything. A dry run and
    /// a build begin with it.
    ///
    /// # Errors
    /// [`Error`] if the job could not be done as it is.
    pub fn check(&self) -> Result<(), Error> {
        Start::of(self, &Source::open(&self.input)?, false).map(drop)
    }

    /// Prints what the job would bring, without reading weights or writing anything.
    ///
    /// # Errors
    /// [`Error`] if the job could not be done as it is.
    pub fn dry_run(&self) -> Result<(), Error> {
        let source = Source::open(&self.input)?;
        let Start { mut plan, calibration, allocated, warnings, .. } =
            Start::of(self, &source, false)?;
        warnings.iter().for_each(|warning| eprintln!("{}: warning: {warning}", self.tool));
        if self.method.has_budget() && allocated.is_none() {
            let allocation = self.try_allocation(&source, &plan, calibration.as_ref())?;
            let method = self.method.with_allocation(&allocation);
            plan = Plan::new(&source, &plan.tensors(), &*method, self.seed)?;
        }
        self.warn_of_growth(&plan, &Reporter::new());
        let totals = plan.totals();
        let kept = if self.options.keep_dense { totals.source_bytes } else { 0 };
        let replaced = totals.source_bytes - kept;
        let file = source.n_bytes() - replaced + totals.coded_bytes;
        let note = source.mtp_note(&plan.tensors(), self.inputs().is_some());
        let text = format!(
            "{}\n\n{}Saved: {} of the source's bytes for these tensors, {} of Q5_K_M's.\n\
             Output file: about {} bytes, the input has {}. Nothing was written (--dry-run).",
            plan.table().render_for_stdout(),
            note.map_or_else(String::new, |note| note + "\n"),
            percent(saved(totals.coded_bytes + kept, totals.source_bytes)),
            percent(saved(totals.coded_bytes + kept, totals.q5_k_m_bytes)),
            bytes(file),
            bytes(source.n_bytes()),
        );
        print_line(&text).map_err(io(Path::new("stdout"), "write"))
    }

    /// What the tensors of `plan` would get of the budget.
    fn try_allocation(
        &self,
        source: &Source,
        plan: &Plan,
        calibration: Option<&Calibration>,
    ) -> Result<Allocation, Error> {
        let (reporter, interrupt) = (Reporter::new(), Interrupt::default());
        let tensors = plan.tensors();
        let mut importance = self.imatrix_importance(source, &tensors)?;
        if let (Some(calibration), Some((_, shaping))) = (calibration, &self.calib) {
            let sha256 = source.sha256(&reporter, &interrupt)?;
            calibration.check_model(&source.model_id(sha256)?)?;
            let watch = (&reporter, &interrupt);
            importance = Some(read_importance(calibration, source, &tensors, *shaping, watch)?);
        }
        let survey = Survey {
            source,
            plan,
            importance: importance.as_ref(),
            calibration,
            options: &self.options,
            mul_mat: &self.use_threads(),
            reporter: &reporter,
            interrupt: &interrupt,
        };
        let allocation = self.method.allocate(&survey);
        reporter.finish();
        allocation
    }

    /// The calibration, if there is one, which covers what `tensors` need of it.
    fn calibration(
        &self,
        source: &Source,
        tensors: &[MatrixId],
    ) -> Result<Option<Calibration>, Error> {
        let calib = self.calib.as_ref();
        calib.map(|(path, _)| open_calibration(path, source, tensors, &*self.method)).transpose()
    }

    fn imatrix_importance(
        &self,
        source: &Source,
        tensors: &[MatrixId],
    ) -> Result<Option<BTreeMap<MatrixId, Importance>>, Error> {
        let imatrix = self.imatrix.as_ref();
        imatrix
            .map(|(path, shaping)| crate::read_importance(path, source, tensors, *shaping))
            .transpose()
    }

    /// Builds the output and prints the report.
    ///
    /// # Errors
    /// [`Error`]; finished tensors are kept for `--resume`.
    ///
    /// # Panics
    /// If there is no output.
    pub fn run(&self) -> Result<(), Error> {
        let output = self.output.as_deref().expect("a build has an output");
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, output)?;
        session.identify_input()?;
        session.read_calibration()?;
        prepare::check_weights(&source, &session.plan, &session.reporter, &session.interrupt)?;
        if self.method.has_budget() && session.allocated.is_none() {
            session.allocate()?;
            prepare::check_room(output, &source, &session.plan, &self.room())?;
        }
        self.warn_of_growth(&session.plan, &session.reporter);
        session.build()
    }

    /// Says which matrices of the final `plan` would grow, while that can still be changed.
    fn warn_of_growth(&self, plan: &Plan, reporter: &Reporter) {
        for warning in plan.growth(&*self.method) {
            reporter.line(&format!("{}: {warning}", self.tool));
        }
    }

    /// Sets the number of threads of rayon and, through [`MulMat`], of ggml.
    fn use_threads(&self) -> MulMat {
        // An error means that the pool exists already, as in a test that runs several jobs.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(self.n_threads).build_global();
        MulMat::new(self.n_threads)
    }

    /// What takes room beside the source's bytes.
    fn room(&self) -> prepare::Room {
        let n_checkpoints = if self.method.tunes() { 2 } else { 1 };
        prepare::Room { keep_dense: self.options.keep_dense, n_checkpoints }
    }

    /// The record of this job; the input's hash is still missing.
    fn record(&self, source: &Source) -> Result<Record, Error> {
        let hash = |(_, path, _): (_, &Path, _)| {
            let read = File::open(path).and_then(|mut f| files::sha256(&mut f, |_| Ok(())));
            read.map_err(io(path, "read"))
        };
        let inputs = self.inputs().map(hash).transpose()?;
        Ok(Record {
            record_version: RECORD_VERSION,
            tool: self.tool.to_owned(),
            tool_version: self.tool_version.to_owned(),
            llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
            input_sha256: String::new(),
            input_bytes: source.n_bytes(),
            arguments: self.arguments(inputs.as_deref()),
            machines: [arithmetic(self.method.machine())].into(),
            planned: BTreeSet::new(),
            tensors: BTreeMap::new(),
        })
    }
}
