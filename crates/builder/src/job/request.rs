//! What a program asks a build to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;
use program::{Selection, files, outputs};

use crate::calibrated::{needs_text_only, open_calibration};
use crate::error::io;
use crate::machine::arithmetic;
use crate::{
    BuildOptions, CalibrationSource, Error, Existing, Importance, MakesCalibration, Method,
    RECORD_VERSION, Record, Shaping, Source, prepare,
};

/// The flag of an importance matrix.
const IMATRIX: &str = "--imatrix";
/// The flag of a calibration, and what records call one that the build has made itself.
pub(super) const CALIB: &str = "--calib";

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
    pub calib: Option<(CalibrationSource, Shaping)>,
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
        if let Some((flag, shaping)) = self.informant() {
            set("--imatrix-eps", shaping.eps.to_string());
            set("--imatrix-power", shaping.power.to_string());
            if let Some(sha256) = sha256 {
                set(flag, format!("sha256:{sha256}"));
            }
        }
        arguments
    }

    /// The flag of what tells about the inputs, and how that is used.
    pub(super) fn informant(&self) -> Option<(&'static str, Shaping)> {
        let imatrix = self.imatrix.as_ref().map(|(_, shaping)| (IMATRIX, *shaping));
        imatrix.or(self.calib.as_ref().map(|(_, shaping)| (CALIB, *shaping)))
    }

    /// The user's file that tells about the inputs, with its flag.
    fn informing_file(&self) -> Option<(&'static str, &Path)> {
        let imatrix = self.imatrix.as_ref().map(|(path, _)| (IMATRIX, path.as_path()));
        let calib = || match &self.calib {
            Some((CalibrationSource::File(path), _)) => Some((CALIB, path.as_path())),
            _ => None,
        };
        imatrix.or_else(calib)
    }

    /// The calibration that the build makes itself.
    pub(super) fn making(&self) -> Option<&dyn MakesCalibration> {
        match &self.calib {
            Some((CalibrationSource::Made(making), _)) => Some(&**making),
            _ => None,
        }
    }

    /// The calibration, if there is one, which covers what `tensors` need of it. One that the build makes itself may be
    /// still to be made, of which everything is checked then.
    pub(super) fn calibration(
        &self,
        source: &Source,
        tensors: &[MatrixId],
    ) -> Result<Option<Calibration>, Error> {
        match &self.calib {
            None => Ok(None),
            Some((CalibrationSource::File(path), _)) => {
                open_calibration(path, source, tensors, &*self.method).map(Some)
            }
            Some((CalibrationSource::Made(making), _)) => {
                let text_only = needs_text_only(&*self.method);
                let found = making.find(source, tensors, text_only)?;
                if found.is_none() {
                    making.check(source, text_only)?;
                }
                Ok(found)
            }
        }
    }

    pub(super) fn imatrix_importance(
        &self,
        source: &Source,
        tensors: &[MatrixId],
    ) -> Result<Option<BTreeMap<MatrixId, Importance>>, Error> {
        let imatrix = self.imatrix.as_ref();
        imatrix
            .map(|(path, shaping)| crate::read_importance(path, source, tensors, *shaping))
            .transpose()
    }

    /// What takes room beside the source's bytes.
    pub(super) fn room(&self) -> prepare::Room {
        let n_checkpoints = 1 + self.method.tunings().len() as u64;
        prepare::Room { keep_dense: self.options.keep_dense, n_checkpoints }
    }

    /// The record of this job; the input's hash is still missing, and that of a `calibration` that is still to be made.
    pub(super) fn record(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
    ) -> Result<Record, Error> {
        let path = calibration.map(Calibration::path);
        let path = path.or(self.imatrix.as_ref().map(|(path, _)| path.as_path()));
        let inputs = path.map(hash).transpose()?;
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

    /// Checks that the files to be written can be, and are no others of this job.
    pub(super) fn check_files(&self, source: &Source) -> Result<(), Error> {
        let mut read: Vec<_> = source.file().paths().map(|path| ("-i", path)).collect();
        read.extend(self.informing_file());
        read.extend(self.making().iter().flat_map(|making| making.texts()));
        let outputs = [("-o", &self.output), ("--report-json", &self.report_json)];
        let mut written: Vec<(&str, &Path)> =
            outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).collect();
        written.extend(self.making().and_then(|making| Some(("-o", making.path()?))));
        outputs::check_distinct(&read, &written)?;
        Ok(written.iter().try_for_each(|(_, path)| outputs::check_output(path))?)
    }
}

/// SHA-256 of the file at `path`.
pub(super) fn hash(path: &Path) -> Result<String, Error> {
    let read = File::open(path).and_then(|mut file| files::sha256(&mut file, |_| Ok(())));
    read.map_err(io(path, "read"))
}
