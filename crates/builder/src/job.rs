//! A build from start to end, as a program asks for it.

mod session;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;
use ggml::MulMat;
use program::table::print_line;
use program::{Interrupt, Reporter, Selection, files};
use session::Session;
use start::Start;

use crate::calibrated::open_calibration;
use crate::error::{io, watch};
use crate::machine::arithmetic;
use crate::report::BuildReport;
use crate::{
    BuildOptions, Error, Existing, Importance, Method, RECORD_VERSION, Record, Shaping, Source,
    prepare,
};

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

    /// Prints what the job would bring, without writing anything. Weights are read only to share out a budget.
    ///
    /// # Errors
    /// [`Error`] if the job could not be done as it is.
    pub fn dry_run(&self) -> Result<(), Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, None, Reporter::new())?;
        if session.must_allocate() {
            session.identify_input()?;
            session.read_calibration()?;
            session.allocate()?;
        }
        session.print_plan()
    }

    /// Builds the output and prints the report. The user may ask for a stop meanwhile.
    ///
    /// # Errors
    /// [`Error`]; finished tensors are kept for `--resume`.
    ///
    /// # Panics
    /// If there is no output.
    pub fn run(&self) -> Result<(), Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, self.output.as_deref(), Reporter::new())?;
        session.interrupt = watch(self.tool, "stopping after the tensor in hand", &self.input)?;
        let report = session.run_to_its_end()?;
        print_line(&report.text()).map_err(io(Path::new("stdout"), "write"))
    }

    /// As [`Self::run`], as a step of other work that says what there is to say and watches for requests to stop.
    ///
    /// # Errors
    /// As [`Self::run`].
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn build_quietly(&self, interrupt: &Interrupt) -> Result<BuildReport, Error> {
        let source = Source::open(&self.input)?;
        let mut session = Session::open(self, &source, self.output.as_deref(), Reporter::silent())?;
        session.interrupt = interrupt.clone();
        session.run_to_its_end()
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

    /// Sets the number of threads of rayon, on which products run as well.
    fn use_threads(&self) -> MulMat {
        // An error means that the pool exists already, as in a test that runs several jobs.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(self.n_threads).build_global();
        MulMat::on_rayon(self.n_threads)
    }

    /// What takes room beside the source's bytes.
    fn room(&self) -> prepare::Room {
        let n_checkpoints = if self.method.tuning().is_some() { 2 } else { 1 };
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
