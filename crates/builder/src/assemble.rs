//! Putting the output together: the source's metadata and tensors, with sidecars in place of the coded ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use format::{MatrixId, Sidecar, keys};
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter, TensorInfo, WriteError};
use program::progress::ByteStage;
use program::table::bits_per_weight;
use program::{Interrupt, files};

use crate::build::{Build, Finished};
use crate::error::io;
use crate::existing::ExistingOutput;
use crate::record::TensorRecord;
use crate::{Error, PlanItem, Record, WorkFolder};

/// Bytes written at once, between two looks at progress and requests to stop.
const WRITE_BLOCK_BYTES: usize = 4 << 20;

/// What one tensor of the output is made of.
enum Piece<'a> {
    /// A tensor of the source as it is.
    Copy(&'a TensorInfo),
    /// The sidecar with this position among those of a finished tensor.
    Sidecar(&'a PlanItem, usize),
}

/// Everything that goes into the output.
pub struct Assembly<'a> {
    build: &'a Build<'a>,
    finished: &'a BTreeMap<MatrixId, Finished>,
    work: &'a WorkFolder,
    existing: Option<&'a ExistingOutput>,
    record: Record,
    writer: GgufWriter,
    pieces: Vec<Piece<'a>>,
}

impl<'a> Assembly<'a> {
    /// Lays out the output. `record` comes without tensors; they are added here.
    ///
    /// # Errors
    /// [`Error::Write`] if the metadata cannot be expressed.
    pub fn new(
        build: &'a Build<'a>,
        finished: &'a BTreeMap<MatrixId, Finished>,
        work: &'a WorkFolder,
        existing: Option<&'a ExistingOutput>,
        record: &Record,
    ) -> Result<Self, Error> {
        let tensors = finished.iter().map(|(t, f)| (t.stem(), tensor_record(f))).collect();
        let mut assembly = Self {
            build,
            finished,
            work,
            existing,
            record: Record { tensors, planned: BTreeSet::new(), ..record.clone() },
            writer: GgufWriter::new(),
            pieces: Vec::new(),
        };
        assembly
            .add_metadata()
            .and_then(|()| assembly.add_tensors())
            .map_err(|cause| Error::Write { path: work.part(), cause })?;
        Ok(assembly)
    }

    /// The record as it will stand in the file.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Size of the output in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.writer.total_bytes()
    }

    /// Writes the output to a temporary name in the work folder; [`files::publish`] makes it visible.
    ///
    /// # Errors
    /// [`Error::Write`] (a full disk), [`Error::Resume`] (a damaged checkpoint) or [`Error::Stopped`];
    /// the temporary file is removed then.
    pub fn write_part(&self) -> Result<(), Error> {
        let part = self.work.part();
        let written = self.try_write(&part);
        if written.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&part);
        }
        written
    }

    fn try_write(&self, part: &Path) -> Result<(), Error> {
        let file = File::create(part).map_err(io(part, "write"))?;
        let stage = self.build.reporter.bytes("writing the output", self.total_bytes());
        let mut source = Sidecars { assembly: self, current: None, failure: None };
        let out = Blocks { file: &file, stage: &stage, interrupt: self.build.interrupt };
        let written = self.writer.write(out, |index, out| match &self.pieces[index] {
            Piece::Copy(info) => {
                let file = self.build.source.file();
                let result = out.write_all(file.data(info));
                file.release(info);
                result
            }
            Piece::Sidecar(item, n) => out.write_all(source.data(item, *n)?),
        });
        if let Some(failure) = source.failure {
            return Err(failure);
        }
        if self.build.interrupt.is_set() {
            let n = self.finished.len();
            return Err(Error::Interrupted {
                path: self.work.path().to_owned(),
                finished: n,
                total: n,
            });
        }
        written.map_err(|cause| Error::Write { path: part.to_owned(), cause })?;
        files::sync(&file).map_err(io(part, "flush"))?;
        // What was written must be a file that this project reads.
        let reread = GgufFile::open(part)?;
        assert_eq!(reread.tensors().len(), self.pieces.len(), "the output lacks tensors");
        Ok(())
    }

    fn coded(&self) -> Vec<&'a PlanItem> {
        let is_coded = |item: &&PlanItem| self.finished[&item.tensor].result.scheme.is_some();
        self.build.plan.items.iter().filter(is_coded).collect()
    }

    fn add_metadata(&mut self) -> Result<(), WriteError> {
        self.writer.copy_metadata_from(self.build.source.file(), |_| true);
        let coded = self.coded();
        let (method, options) = (self.build.method, self.build.options);
        let writer = &mut self.writer;
        writer.set(keys::ENABLED, !coded.is_empty())?;
        writer.set(keys::VERSION, keys::FORMAT_VERSION)?;
        writer.set(keys::SCHEME, method.scheme())?;
        for (key, value) in method.metadata(&coded) {
            writer.set(&key, value)?;
        }
        writer.set(keys::DEFAULT_GAP_TOL, options.gap_tol.unwrap_or(f32::INFINITY))?;
        let source: u64 = coded.iter().map(|i| i.source_bytes).sum();
        let kept = if options.keep_dense { source } else { 0 };
        let now: u64 = kept + coded.iter().map(|i| i.coded_bytes).sum::<u64>();
        writer.set(keys::MEM_SAVED_GB, ((source as f64 - now as f64) / 1e9) as f32)?;
        if let Some(calibration) = self.build.calibration {
            writer.set(
                keys::CALIBRATION_SHINGLES,
                calibration.provenance().sketch.hashes().to_vec(),
            )?;
        }
        for item in coded {
            let result = &self.finished[&item.tensor].result;
            let n_weights = item.shape.n_weights() as u64;
            writer.set(&keys::tensor_scheme(item.tensor), item.codec.scheme())?;
            writer.set(&keys::tensor_gap(item.tensor), result.gap)?;
            let bpw = bits_per_weight(item.coded_bytes, n_weights) as f32;
            writer.set(&keys::tensor_bpw(item.tensor), bpw)?;
            // No dimension of a file that is read is beyond that.
            let dims: Vec<u32> = item.matrix.dims().into_iter().map(|d| d as u32).collect();
            writer.set(&keys::tensor_shape(item.tensor), dims)?;
        }
        let record = serde_json::to_string(&self.record).expect("a record is plain data");
        writer.set(keys::RECORD, record)
    }

    fn add_tensors(&mut self) -> Result<(), WriteError> {
        let coded: BTreeMap<String, &PlanItem> =
            self.coded().into_iter().map(|i| (i.tensor.weight(), i)).collect();
        for info in self.build.source.file().tensors() {
            let item = coded.get(info.name());
            if item.is_none() || self.build.options.keep_dense {
                self.writer.add_tensor(info.name(), info.ty(), info.dims())?;
                self.pieces.push(Piece::Copy(info));
            }
            for (n, spec) in item.iter().flat_map(|i| i.sidecars.iter().enumerate()) {
                let item = item.expect("it has sidecars");
                let name = item.tensor.with_suffix(spec.suffix);
                self.writer.add_tensor(&name, Type::from(spec.element_type), &spec.dims)?;
                self.pieces.push(Piece::Sidecar(item, n));
            }
        }
        Ok(())
    }
}

fn tensor_record(finished: &Finished) -> TensorRecord {
    match finished.result.scheme {
        Some(_) => TensorRecord::Coded(finished.result.sidecars_sha256.clone()),
        // JSON has no infinity.
        None => TensorRecord::Dense(finished.result.gap.min(f32::MAX)),
    }
}

/// Loads the sidecars of one finished tensor after the other.
struct Sidecars<'a> {
    assembly: &'a Assembly<'a>,
    current: Option<(MatrixId, Vec<Sidecar>)>,
    /// The reason for an I/O error that `data` returned.
    failure: Option<Error>,
}

impl Sidecars<'_> {
    fn data(&mut self, item: &PlanItem, n: usize) -> std::io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|(tensor, _)| *tensor != item.tensor) {
            match self.load(item) {
                Ok(sidecars) => self.current = Some((item.tensor, sidecars)),
                Err(e) => {
                    self.failure = Some(e);
                    return Err(std::io::Error::other("the sidecars are not available"));
                }
            }
        }
        let (_, sidecars) = self.current.as_ref().expect("just loaded");
        Ok(&sidecars[n].data)
    }

    fn load(&self, item: &PlanItem) -> Result<Vec<Sidecar>, Error> {
        let Assembly { build, finished, work, existing, .. } = self.assembly;
        build.stored(item, &finished[&item.tensor], work, *existing)
    }
}

/// Writes in blocks, telling progress and looking for requests to stop.
pub(crate) struct Blocks<'a> {
    pub(crate) file: &'a File,
    pub(crate) stage: &'a ByteStage<'a>,
    pub(crate) interrupt: &'a Interrupt,
}

impl Write for Blocks<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.interrupt.is_set() {
            // Not `Interrupted`, which `write_all` would take for a signal and try again.
            return Err(std::io::Error::other("asked to stop"));
        }
        let n = self.file.write(&bytes[..bytes.len().min(WRITE_BLOCK_BYTES)])?;
        self.stage.advance(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Gives the finished part its name.
///
/// # Errors
/// [`Error::Program`].
pub fn publish(work: &WorkFolder, output: &Path) -> Result<(), Error> {
    Ok(files::publish(&work.part(), output)?)
}
