//! The dense file that a coded one stands for.

use std::path::PathBuf;

use format::{Family, MatrixId, MatrixShape};
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter, TensorInfo, WriteError};
use inspect::{Inspection, KvTypes};
use program::files::Unfinished;
use program::{Reporter, Selection, outputs};

use crate::assemble::Blocks;
use crate::error::watch;
use crate::{Error, methods};

/// The flag that asks for it.
const FLAG: &str = "--decode";

/// The flag that names the type of the decoded matrices.
const TYPE: &str = "--decode-type";

/// What all keys of coded files begin with.
const KEYS: [&str; 2] = ["statecells.", "seeddelta."];

/// Largest number of half precision.
const F16_MAX: f32 = 65504.0;

/// A coded file to decode, for programs that know no codes.
#[derive(Clone, Debug)]
pub struct DecodeRun {
    /// Name of the program.
    pub tool: &'static str,
    /// The coded file.
    pub input: PathBuf,
    /// The dense file to write.
    pub output: PathBuf,
    /// Type of the decoded matrices.
    pub ty: Type,
    /// Whether the dense file may be replaced.
    pub replaces: bool,
    /// Threads.
    pub n_threads: usize,
}

/// What one tensor of the dense file is.
enum Piece<'a> {
    /// A tensor of the coded file as it is.
    Copy(&'a TensorInfo),
    /// A matrix decoded.
    Decoded(Coded),
}

/// A coded matrix.
#[derive(Clone)]
struct Coded {
    id: MatrixId,
    shape: MatrixShape,
    scheme: String,
}

/// A checked coded file and the layout of the dense one.
struct Layout<'a> {
    writer: GgufWriter,
    pieces: Vec<Piece<'a>>,
}

impl DecodeRun {
    /// Checks all that can be known before the work.
    ///
    /// # Errors
    /// [`Error`] with the file, tensor or flag that does not allow it.
    pub fn check(&self) -> Result<(), Error> {
        let file = GgufFile::open_whole(&self.input)?;
        self.layout(&file).map(drop)
    }

    /// Writes the dense file, one matrix after the other.
    ///
    /// # Errors
    /// As [`Self::check`]; [`Error::Codec`] for codes that stand for nothing, [`Error::Stopped`], or what goes wrong while
    /// writing. Nothing is left behind then.
    pub fn run(&self) -> Result<(), Error> {
        let file = GgufFile::open_whole(&self.input)?;
        let Layout { writer, pieces } = self.layout(&file)?;
        // An error means that the pool exists already.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(self.n_threads).build_global();
        let interrupt = watch(self.tool, "stopping", &self.input)?;
        let reporter = Reporter::new();
        let mut unfinished = Unfinished::create(&self.output)?;
        let stage = reporter.bytes("decoding", writer.total_bytes());
        let mut failure = None;
        let out = Blocks { file: unfinished.file(), stage: &stage, interrupt: &interrupt };
        let written = writer.write(out, |index, out| match &pieces[index] {
            Piece::Copy(info) => {
                let result = out.write_all(file.data(info));
                file.release(info);
                result
            }
            Piece::Decoded(coded) => match self.decoded(&file, coded) {
                Ok(bytes) => out.write_all(&bytes),
                Err(error) => {
                    failure = Some(error);
                    Err(std::io::Error::other("a matrix cannot be decoded"))
                }
            },
        });
        reporter.finish();
        if let Some(failure) = failure {
            return Err(failure);
        }
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        written.map_err(|cause| Error::Write { path: self.output.clone(), cause })?;
        Ok(unfinished.publish()?)
    }

    fn layout<'a>(&self, file: &'a GgufFile) -> Result<Layout<'a>, Error> {
        let read: Vec<_> = file.paths().map(|path| ("-i", path)).collect();
        outputs::check_distinct(&read, &[(FLAG, &self.output)])?;
        outputs::check_output(&self.output)?;
        if !self.replaces && self.output.symlink_metadata().is_ok() {
            let reason = format!("{} already exists: --force replaces it", self.output.display());
            return Err(Error::flag(FLAG, reason));
        }
        let coded = self.coded(file)?;
        let mut layout = Layout { writer: GgufWriter::new(), pieces: Vec::new() };
        layout
            .lay_out(file, &coded, self.ty)
            .map_err(|cause| Error::Write { path: self.output.clone(), cause })?;
        let n_bytes = layout.writer.total_bytes();
        outputs::check_space(&self.output, n_bytes, n_bytes)?;
        Ok(layout)
    }

    /// The coded matrices, each checked as far as its shape and type go.
    fn coded(&self, file: &GgufFile) -> Result<Vec<Coded>, Error> {
        let model = |reason: String| Error::Model { path: self.input.clone(), reason };
        let (all, kv) = (Selection::default(), KvTypes::default());
        let inspection = Inspection::new(&self.input, &all, None, kv).map_err(Error::Inspect)?;
        let mut coded = Vec::new();
        for tensor in &inspection.tensors {
            let Some(scheme) = &tensor.scheme else { continue };
            let id = tensor.tensor();
            if !methods::can_decode(scheme) {
                let reason = match Family::of(scheme) {
                    Some(family) => format!(
                        "{id} has the scheme {scheme}: decode the file with {}-build",
                        family.flag
                    ),
                    None => format!(
                        "{id} has the scheme {scheme}, which is unknown: made by a newer version"
                    ),
                };
                return Err(model(reason));
            }
            let shape = tensor.shape().filter(|s| self.fits_memory(*s)).ok_or_else(|| {
                model(format!("{id}: its metadata tell no shape that its codes could have"))
            })?;
            if self.ty.row_bytes(shape.d_in).is_none() {
                let reason = format!(
                    "{id} has rows of {}, {} takes multiples of {}: use {TYPE} q8_0 or f16",
                    shape.d_in,
                    self.ty,
                    self.ty.block_size()
                );
                return Err(Error::flag(TYPE, reason));
            }
            coded.push(Coded { id, shape, scheme: scheme.clone() });
        }
        let is_no_matrix =
            |name: &String| !coded.iter().any(|coded: &Coded| coded.id.stem() == *name);
        if let Some(name) = file.coded_tensors().into_iter().find(is_no_matrix) {
            return Err(model(format!(
                "{name} is marked as coded, and is no FFN matrix of the model"
            )));
        }
        if coded.is_empty() {
            return Err(model(format!("is not coded: {FLAG} has nothing to do")));
        }
        Ok(coded)
    }

    /// Whether a matrix of `shape` can be held in F32: dimensions in metadata may lie.
    fn fits_memory(&self, shape: MatrixShape) -> bool {
        let bytes = shape.checked_n_weights().and_then(|n| n.checked_mul(2 * size_of::<f32>()));
        bytes.is_some_and(|bytes| bytes > 0 && bytes as u64 <= program::memory_bytes())
    }

    /// The bytes of a decoded matrix.
    fn decoded(&self, file: &GgufFile, coded: &Coded) -> Result<Vec<u8>, Error> {
        let Coded { id, shape, scheme } = coded;
        let codec = |cause| Error::Codec { tensor: id.weight(), cause };
        let weights = methods::decode(scheme, &file.sidecars(*id), *shape).map_err(codec)?;
        if self.ty == Type::F16 && weights.iter().any(|w| w.abs() > F16_MAX) {
            let reason = format!("{id} has weights beyond its range: use {TYPE} f32");
            return Err(Error::flag(TYPE, reason));
        }
        let quantized = self.ty.quantize(&weights, shape.d_in, None);
        quantized.map_err(|e| Error::flag(TYPE, format!("{id}: {e}")))
    }
}

impl<'a> Layout<'a> {
    /// All tensors of `file`, with the dense matrix in the place of the first tensor of each coded one.
    fn lay_out(&mut self, file: &'a GgufFile, coded: &[Coded], ty: Type) -> Result<(), WriteError> {
        self.writer.copy_metadata_from(file, |key| !KEYS.iter().any(|k| key.starts_with(k)));
        let mut left: Vec<&Coded> = coded.iter().collect();
        for info in file.tensors() {
            let belongs = |coded: &&Coded| {
                let parts = Family::of(&coded.scheme).map_or(&[][..], |family| family.sidecars);
                let names = std::iter::once(&"weight").chain(parts);
                names.into_iter().any(|part| coded.id.with_suffix(part) == info.name())
            };
            if !coded.iter().any(|c| belongs(&c)) {
                self.writer.add_tensor(info.name(), info.ty(), info.dims())?;
                self.pieces.push(Piece::Copy(info));
            } else if let Some(at) = left.iter().position(belongs) {
                let coded = left.remove(at);
                let dims = [coded.shape.d_in, coded.shape.d_out];
                self.writer.add_tensor(&coded.id.weight(), ty, &dims)?;
                self.pieces.push(Piece::Decoded(coded.clone()));
            }
        }
        Ok(())
    }
}
