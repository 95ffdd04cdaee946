//! The dense file that a coded one stands for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use format::{Family, Matrix, MatrixId, MatrixShape};
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter, TensorInfo, WriteError};
use inspect::{Inspection, KvTypes};
use program::files::Unfinished;
use program::{Reporter, Selection, outputs};

use crate::Error;
use crate::assemble::Blocks;
use crate::error::watch;
use crate::job::use_threads;
use crate::methods::{Decode, decoder};

/// The flag that asks for it.
const FLAG: &str = "--decode";

/// The flag that names the type of the decoded matrices.
const TYPE: &str = "--decode-type";

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
    Decoded(MatrixId, Coded),
}

/// What is known of a coded matrix.
#[derive(Clone, Copy)]
struct Coded {
    matrix: Matrix,
    family: &'static Family,
    decode: Decode,
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
        use_threads(self.n_threads);
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
            Piece::Decoded(id, coded) => match self.decoded(&file, *id, *coded) {
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
        outputs::check_absent(FLAG, &self.output, self.replaces)?;
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
    fn coded(&self, file: &GgufFile) -> Result<BTreeMap<MatrixId, Coded>, Error> {
        let model = |reason: String| Error::Model { path: self.input.clone(), reason };
        let (all, kv) = (Selection::default(), KvTypes::default());
        let inspection = Inspection::new(&self.input, &all, None, kv).map_err(Error::Inspect)?;
        let mut coded = BTreeMap::new();
        for tensor in &inspection.tensors {
            let Some(scheme) = &tensor.scheme else { continue };
            let id = tensor.tensor();
            let family = Family::of(scheme).ok_or_else(|| {
                model(format!(
                    "{id} has the scheme {scheme}, which is unknown: made by a newer version"
                ))
            })?;
            let decode = decoder(family).ok_or_else(|| {
                let flag = family.flag;
                model(format!("{id} has the scheme {scheme}: decode the file with {flag}-build"))
            })?;
            let fits = |matrix: &Matrix| self.fits_memory(matrix.stacked());
            let matrix = tensor.matrix().filter(fits).ok_or_else(|| {
                model(format!("{id}: its metadata tell no shape that its codes could have"))
            })?;
            let shape = matrix.shape;
            if self.ty.row_bytes(shape.d_in).is_none() {
                let reason = format!(
                    "{id} has rows of {}, {} takes multiples of {}: use {TYPE} q8_0 or f16",
                    shape.d_in,
                    self.ty,
                    self.ty.block_size()
                );
                return Err(Error::flag(TYPE, reason));
            }
            coded.insert(id, Coded { matrix, family, decode });
        }
        let is_no_matrix =
            |name: &String| MatrixId::of_stem(name).is_none_or(|id| !coded.contains_key(&id));
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
    fn decoded(&self, file: &GgufFile, id: MatrixId, coded: Coded) -> Result<Vec<u8>, Error> {
        let Coded { matrix, decode, .. } = coded;
        let shape = matrix.stacked();
        let codec = |cause| Error::Codec { tensor: id.weight(), cause };
        let weights = decode(&file.sidecars(id), shape).map_err(codec)?;
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
    fn lay_out(
        &mut self,
        file: &'a GgufFile,
        coded: &BTreeMap<MatrixId, Coded>,
        ty: Type,
    ) -> Result<(), WriteError> {
        let is_of = |flag: &str, key: &str| key.split_once('.').is_some_and(|(of, _)| of == flag);
        let is_dense = |key: &str| !format::flags().iter().any(|flag| is_of(flag, key));
        self.writer.copy_metadata_from(file, is_dense);
        let mut left = coded.clone();
        for info in file.tensors() {
            let owner = MatrixId::parse(info.name()).filter(|(id, part)| {
                let is_part = |c: &Coded| *part == "weight" || c.family.sidecars.contains(part);
                coded.get(id).is_some_and(is_part)
            });
            let Some((id, _)) = owner else {
                self.writer.add_tensor(info.name(), info.ty(), info.dims())?;
                self.pieces.push(Piece::Copy(info));
                continue;
            };
            if let Some(coded) = left.remove(&id) {
                self.writer.add_tensor(&id.weight(), ty, &coded.matrix.dims())?;
                self.pieces.push(Piece::Decoded(id, coded));
            }
        }
        Ok(())
    }
}
