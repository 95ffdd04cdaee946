//! Reading: a mapped GGUF file, whole or in parts, whose metadata was checked.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use format::MatrixShape;
use memmap2::{Mmap, UncheckedAdvice};

use super::context::Context;
use super::parts::{Part, Parts};
use super::{GgufError, Value, foreign, scan};
use crate::{Type, TypeError};

/// Name, type, dimensions and place of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    ty: Type,
    dims: Vec<usize>,
    /// Which part holds the data, from 0.
    part: usize,
    range: Range<usize>,
}

impl TensorInfo {
    /// Name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    #[must_use]
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Dimensions, innermost first; one to four, trailing ones dropped.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Size of the data in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.range.len()
    }

    /// Position of the data in the file, or in the part that holds them.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.range.start
    }

    /// Number of values.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        // Cannot overflow: the file holds at least one bit per value, and was checked to hold them.
        self.dims.iter().product()
    }

    /// Shape as a matrix; `None` for more than two dimensions.
    #[must_use]
    pub fn matrix_shape(&self) -> Option<MatrixShape> {
        match *self.dims {
            [d_in] => Some(MatrixShape::new(d_in, 1)),
            [d_in, d_out] => Some(MatrixShape::new(d_in, d_out)),
            _ => None,
        }
    }
}

/// A mapped GGUF file. Pages are read when they are touched, and [`Self::release`] gives them back.
///
/// A model in several files (`NAME-00001-of-0000N.gguf`) is one as well: it is opened by its first part, which has
/// its metadata, and has the tensors and bytes of all of them.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    /// At least one.
    parts: Vec<Part>,
    context: Context,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps `path`, and all other parts where it is the first of several, and checks their metadata: every length
    /// and offset lies within its file, and the parts belong together.
    ///
    /// The files must not be truncated or rewritten in place while they are open: reading a page that is gone
    /// ends the process. Programs of this project replace files by renaming, which is harmless.
    ///
    /// # Errors
    /// [`GgufError::Open`]; [`GgufError::Foreign`] for what is no GGUF of llama.cpp's own; [`GgufError::Malformed`] for
    /// one that is truncated or damaged; [`GgufError::Parts`] if a part is missing or another one than it should be.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let Parts { files, context, tensors } = Parts::open(path)?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { path: path.to_owned(), parts: files, context, tensors, by_name })
    }

    /// Opens a file that has to be a whole one, because it is replaced or identified as such.
    ///
    /// # Errors
    /// As [`Self::open`], and [`GgufError::Parts`] for the first of several parts.
    pub fn open_whole(path: &Path) -> Result<Self, GgufError> {
        let file = Self::open(path)?;
        match file.parts.len() {
            1 => Ok(file),
            n => Err(GgufError::Parts {
                path: path.to_owned(),
                reason: format!("is one of {n} parts: join them with llama-gguf-split --merge"),
            }),
        }
    }

    /// The path it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Paths of the files that it is in, the one it was opened with first.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| part.path.as_path())
    }

    /// Size in bytes, that of all parts.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.map.len()).sum()
    }

    /// All tensors in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor called `name`, which must be there.
    ///
    /// # Errors
    /// [`GgufError::NoTensor`].
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        let missing = || GgufError::NoTensor { path: self.path.clone(), name: name.to_owned() };
        self.tensor(name).ok_or_else(missing)
    }

    /// The stored bytes of `tensor`.
    ///
    /// # Panics
    /// If `tensor` was taken from another, larger file.
    #[must_use]
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.parts[tensor.part].map[tensor.range.clone()]
    }

    /// All values of `tensor` in ggml order, converted on rayon's threads.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] if the type holds no floats.
    ///
    /// # Panics
    /// As [`Self::data`].
    pub fn to_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>, GgufError> {
        let error = |cause: TypeError| GgufError::Tensor {
            path: self.path.clone(),
            name: tensor.name.clone(),
            cause,
        };
        if !tensor.ty.has_to_float() {
            return Err(error(TypeError::NotFloat(tensor.ty)));
        }
        let mut values = vec![0.0; tensor.n_elements()];
        let n_per_row = tensor.dims[0];
        tensor.ty.rows_to_float(self.data(tensor), n_per_row, &mut values).map_err(error)?;
        Ok(values)
    }

    /// Gives the memory of `tensor`'s mapped pages back; touching them again reads them from the file.
    ///
    /// A hint: where the system refuses it, memory stays in use and nothing else changes.
    ///
    /// # Panics
    /// As [`Self::data`].
    pub fn release(&self, tensor: &TensorInfo) {
        let n_bytes = self.data(tensor).len();
        if n_bytes > 0 {
            let map = &self.parts[tensor.part].map;
            // SAFETY: dropping pages of a read-only shared mapping of a file loses nothing: the same
            // bytes come back from the file.
            let dropped = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, tensor.offset(), n_bytes)
            };
            drop(dropped);
        }
    }

    /// All metadata keys in file order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.context.keys()
    }

    /// The metadata value of `key`. Text that is not UTF-8 has its bad bytes replaced.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value> {
        self.context.value(key)
    }

    /// The string `key`, `None` if the key is missing.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn string(&self, key: &str) -> Result<Option<String>, GgufError> {
        self.typed(key, "str", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    /// The number `key` of any integer type that fits, `None` if the key is missing.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "u32", |value| {
            value.as_u64().and_then(|v| u32::try_from(v).ok()).ok_or(value)
        })
    }

    /// The F32 number `key`, `None` if the key is missing.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "f32", |value| match value {
            Value::F32(number) => Ok(number),
            other => Err(other),
        })
    }

    /// The flag `key`, `None` if the key is missing.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "bool", |value| match value {
            Value::Bool(flag) => Ok(flag),
            other => Err(other),
        })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        convert(value).map(Some).map_err(|value| GgufError::KeyType {
            path: self.path.clone(),
            key: key.to_owned(),
            found: value.type_name(),
            expected,
        })
    }

    /// The model's architecture (`llama`), `general.architecture`.
    ///
    /// # Errors
    /// [`GgufError::NoKey`] or [`GgufError::KeyType`].
    pub fn architecture(&self) -> Result<String, GgufError> {
        let key = "general.architecture";
        let missing = || GgufError::NoKey { path: self.path.clone(), key: key.to_owned() };
        self.string(key)?.ok_or_else(missing)
    }

    /// Tensors start at multiples of this many bytes.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.context.alignment()
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }
}

/// The one door to mapped memory.
///
/// # Errors
/// [`GgufError::Open`], or [`GgufError::Foreign`] for what is no file.
pub(crate) fn map(path: &Path) -> Result<Mmap, GgufError> {
    if let Some(foreign) = foreign::not_a_file(path) {
        return Err(foreign.at(path));
    }
    let mapped = File::open(path).and_then(|file| map_file(&file));
    mapped.map_err(|cause| GgufError::Open { path: path.to_owned(), cause })
}

fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapped bytes count as immutable, so nobody may change the file meanwhile. Nothing in the
    // process does: outputs are written under other names and renamed. What other processes do is the
    // user's duty, as stated for `GgufFile::open`.
    unsafe { Mmap::map(file) }
}

/// Parses the metadata in the mapped file at `path`, the part with this number, from 0.
pub(super) fn read(
    map: &Mmap,
    path: &Path,
    part: usize,
) -> Result<(Context, Vec<TensorInfo>), GgufError> {
    parse(map, part).map_err(|reason| match foreign::of(map) {
        Some(foreign) => foreign.at(path),
        None => GgufError::Malformed { path: path.to_owned(), reason },
    })
}

/// Parses the metadata in `bytes`, which are those of the part with this number, from 0, and checks it again; the
/// error is one line.
pub(super) fn parse(bytes: &[u8], part: usize) -> Result<(Context, Vec<TensorInfo>), String> {
    scan::check(bytes)?;
    let context = Context::parse(bytes).map_err(explain)?;
    let tensors = (0..context.n_tensors())
        .map(|id| tensor_info(&context, id, part, bytes.len()))
        .collect::<Result<_, _>>()?;
    Ok((context, tensors))
}

/// ggml's message for files without the data, in words of the file.
fn explain(message: String) -> String {
    match &*message {
        "failed to seek to beginning of data section" => {
            "the tensors' data are not there (truncated or damaged)".to_owned()
        }
        _ => message,
    }
}

/// ggml computes sizes with wrapping arithmetic and does not look at the end of the file: both are
/// checked here.
fn tensor_info(
    context: &Context,
    id: i64,
    part: usize,
    file_bytes: usize,
) -> Result<TensorInfo, String> {
    let (name, raw_type, raw_dims, offset) = context.tensor(id);
    let ty = Type::try_from(raw_type).map_err(|e| format!("tensor '{name}': {e}"))?;
    let overflow = || format!("tensor '{name}': {ty} {raw_dims:?} is larger than any file");
    let mut dims: Vec<usize> = Vec::with_capacity(raw_dims.len());
    for n in raw_dims {
        dims.push(usize::try_from(n).map_err(|_| overflow())?);
    }
    let n_bytes = ty.tensor_bytes(&dims).ok_or_else(overflow)?;
    while dims.len() > 1 && dims.last() == Some(&1) {
        dims.pop();
    }
    let start = context.data_offset().checked_add(offset).ok_or_else(overflow)?;
    let end = start.checked_add(n_bytes).ok_or_else(overflow)?;
    if end > file_bytes {
        return Err(format!(
            "tensor '{name}' ends at byte {end}, the file at {file_bytes} (truncated or damaged)"
        ));
    }
    Ok(TensorInfo { name, ty, dims, part, range: start..end })
}
