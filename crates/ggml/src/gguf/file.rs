//! Reading: a mapped GGUF file, whole or in parts, whose metadata was checked.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::UncheckedAdvice;

use super::context::Context;
use super::parts::{Part, Parts};
use super::tensor::TensorInfo;
use super::{GgufError, Value};
use crate::TypeError;

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
        self.rows_to_f32(tensor, 0..tensor.n_elements() / tensor.dims[0].max(1))
    }

    /// The same of `rows`, each of the innermost dimension's length.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] if the type holds no floats, or the tensor not so many rows.
    ///
    /// # Panics
    /// As [`Self::data`].
    pub fn rows_to_f32(
        &self,
        tensor: &TensorInfo,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, GgufError> {
        let error = |cause: TypeError| GgufError::Tensor {
            path: self.path.clone(),
            name: tensor.name.clone(),
            cause,
        };
        let (ty, n_per_row) = (tensor.ty, tensor.dims[0]);
        if !ty.has_to_float() {
            return Err(error(TypeError::NotFloat(ty)));
        }
        let row_bytes =
            ty.row_bytes(n_per_row).ok_or_else(|| error(TypeError::Row { ty, n_per_row }))?;
        let (n_values, data) = (rows.len() * n_per_row, self.data(tensor));
        let bytes = data.get(rows.start * row_bytes..rows.end * row_bytes);
        let n_bytes = data.len();
        let bytes = bytes.ok_or_else(|| error(TypeError::Size { ty, n_bytes, n_values }))?;
        let mut values = vec![0.0; n_values];
        ty.rows_to_float(bytes, n_per_row, &mut values).map_err(error)?;
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
