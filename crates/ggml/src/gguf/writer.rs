//! Writing: metadata first, then the tensors one by one, without ever holding all of them.

use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::io::{self, Write};

use ggml_sys as sys;

use super::context::Context;
use super::{Array, GgufFile, Value, WriteError};
use crate::Type;
use crate::arena::Arena;

/// Alignment of tensor data in written files, in bytes.
const ALIGNMENT: u64 = sys::GGUF_DEFAULT_ALIGNMENT as u64;
const ALIGNMENT_KEY: &str = "general.alignment";

/// Collects metadata and tensor descriptions, then writes the file.
#[derive(Debug)]
pub struct GgufWriter {
    context: Context,
    tensors: Vec<PlannedTensor>,
    names: HashSet<String>,
}

#[derive(Debug)]
struct PlannedTensor {
    name: String,
    n_bytes: u64,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// A file without metadata and tensors.
    #[must_use]
    pub fn new() -> Self {
        Self { context: Context::new(), tensors: Vec::new(), names: HashSet::new() }
    }

    /// Copies the metadata of `source`, in its order, for which `keep(key)` holds.
    ///
    /// Two kinds of keys are always left out: a `general.alignment` other than the alignment written here,
    /// and `split.*`, which describes how `source` was cut in files. Strings are copied as llama.cpp would
    /// read them, up to a NUL.
    pub fn copy_metadata_from(&mut self, source: &GgufFile, mut keep: impl FnMut(&str) -> bool) {
        let mut copy = Context::new();
        // SAFETY: both contexts are valid and distinct.
        unsafe { sys::gguf_set_kv(copy.as_mut_ptr(), source.context().as_ptr()) };
        let other_alignment = source.alignment() as u64 != ALIGNMENT;
        for key in copy.keys() {
            let misplaced = key == ALIGNMENT_KEY && other_alignment || key.starts_with("split.");
            if misplaced || !keep(&key) {
                remove_key(&mut copy, &key);
            }
        }
        // SAFETY: both contexts are valid and distinct.
        unsafe { sys::gguf_set_kv(self.context.as_mut_ptr(), copy.as_ptr()) };
    }

    /// Sets `key`, replacing an earlier value; the new one goes to the end of the metadata.
    ///
    /// # Errors
    /// [`WriteError::Key`] for an empty key, a NUL in the key or a string, or `general.alignment`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), WriteError> {
        let refuse = |reason| Err(WriteError::Key { key: key.to_owned(), reason });
        if key.is_empty() {
            return refuse("is empty");
        }
        if key == ALIGNMENT_KEY {
            return refuse("is decided by the writer");
        }
        match set_value(&mut self.context, key, &value.into()) {
            Ok(()) => Ok(()),
            Err(_) => refuse("holds a NUL character"),
        }
    }

    /// Removes `key` if it is there.
    pub fn remove(&mut self, key: &str) {
        remove_key(&mut self.context, key);
    }

    /// The value that `key` has so far.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value> {
        self.context.value(key)
    }

    /// Appends a tensor of `dims` (innermost first, one to four); its data follows in [`Self::write`].
    ///
    /// # Errors
    /// [`WriteError::Name`] or [`WriteError::Dims`].
    pub fn add_tensor(&mut self, name: &str, ty: Type, dims: &[usize]) -> Result<(), WriteError> {
        let c_name = self.check_name(name)?;
        let refuse = || WriteError::Dims { name: name.to_owned(), ty, dims: dims.to_vec() };
        let (ne, n_bytes) = checked_dims(ty, dims).ok_or_else(refuse)?;
        let total = self.data_bytes().checked_add(n_bytes).filter(|&n| n <= i64::MAX as u64);
        total.ok_or_else(refuse)?;
        add_to_context(&mut self.context, &c_name, ty, &ne);
        self.names.insert(name.to_owned());
        self.tensors.push(PlannedTensor { name: name.to_owned(), n_bytes });
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<CString, WriteError> {
        let refuse = |reason| WriteError::Name { name: name.to_owned(), reason };
        if name.is_empty() || name.len() >= sys::GGML_MAX_NAME as usize {
            return Err(refuse("the name must have 1 to 63 bytes"));
        }
        if self.names.contains(name) {
            return Err(refuse("there is one of that name already"));
        }
        CString::new(name).map_err(|_| refuse("the name holds a NUL character"))
    }

    /// Number of tensors added so far.
    #[must_use]
    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// The metadata as it will stand at the start of the file, padded to the alignment.
    #[must_use]
    pub fn metadata(&self) -> Vec<u8> {
        // SAFETY: the context is valid.
        let n_bytes = unsafe { sys::gguf_get_meta_size(self.context.as_ptr()) };
        let mut bytes = vec![0u8; n_bytes];
        // SAFETY: the buffer has the size that ggml asked for, and the context did not change since.
        unsafe { sys::gguf_get_meta_data(self.context.as_ptr(), bytes.as_mut_ptr().cast()) };
        bytes
    }

    /// Size of the whole file in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        // SAFETY: the context is valid.
        let metadata = unsafe { sys::gguf_get_meta_size(self.context.as_ptr()) };
        metadata as u64 + self.data_bytes()
    }

    fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// Writes the file: metadata, then for every tensor, in the order added, what `data(index, out)` writes,
    /// padded to the alignment. Buffers nothing and does not sync.
    ///
    /// # Errors
    /// [`WriteError::DataSize`] if `data` writes another number of bytes than the tensor has;
    /// [`WriteError::Io`] from `out` or `data`.
    pub fn write(
        &self,
        mut out: impl Write,
        mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        out.write_all(&self.metadata())?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let mut counted = Counted { out: &mut out, written: 0, expected: tensor.n_bytes };
            let result = data(index, &mut counted);
            let written = counted.written;
            if written > tensor.n_bytes || result.is_ok() && written < tensor.n_bytes {
                let (name, expected) = (tensor.name.clone(), tensor.n_bytes);
                return Err(WriteError::DataSize { name, written, expected });
            }
            result?;
            let padding = tensor.n_bytes.next_multiple_of(ALIGNMENT) - tensor.n_bytes;
            out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        out.flush()?;
        Ok(())
    }
}

/// Counts what is written and lets nothing through beyond the expected size.
struct Counted<W> {
    out: W,
    written: u64,
    expected: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.expected.saturating_sub(self.written) {
            self.written = self.written.saturating_add(bytes.len() as u64);
            return Err(io::Error::other("more data than the tensor holds"));
        }
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// ggml's four dimensions and the size in bytes, if the type can have them and nothing overflows.
fn checked_dims(ty: Type, dims: &[usize]) -> Option<([i64; 4], u64)> {
    let mut ne = [1; sys::GGML_MAX_DIMS as usize];
    for (slot, &n) in ne.get_mut(..dims.len())?.iter_mut().zip(dims) {
        *slot = i64::try_from(n).ok()?;
    }
    // ggml multiplies the number of elements as i64, also where a dimension is 0.
    dims.iter().try_fold(1i64, |n, &d| n.checked_mul(i64::try_from(d).ok()?.max(1)))?;
    let n_bytes = ty.tensor_bytes(dims)?;
    Some((ne, u64::try_from(i64::try_from(n_bytes).ok()?).ok()?))
}

fn add_to_context(context: &mut Context, name: &CString, ty: Type, ne: &[i64; 4]) {
    let mut arena = Arena::new(1, 0);
    // SAFETY: there is room for one tensor, and its size does not overflow (checked). The name is new,
    // ends in NUL and is shorter than GGML_MAX_NAME. ggml copies the description before the arena goes.
    unsafe {
        let tensor = arena.tensor(ty, ne);
        sys::ggml_set_name(tensor, name.as_ptr());
        sys::gguf_add_tensor(context.as_mut_ptr(), tensor);
    }
}

fn remove_key(context: &mut Context, key: &str) {
    if let Ok(key) = CString::new(key) {
        // SAFETY: the context is valid and the key ends in NUL.
        unsafe { sys::gguf_remove_key(context.as_mut_ptr(), key.as_ptr()) };
    }
}

fn set_value(context: &mut Context, key: &str, value: &Value) -> Result<(), std::ffi::NulError> {
    let c_key = CString::new(key)?;
    let (ctx, key) = (context.as_mut_ptr(), c_key.as_ptr());
    // SAFETY: the context is valid, key and strings end in NUL and are copied by ggml; the key is neither
    // empty nor the reserved one (checked in `set`).
    unsafe {
        match value {
            Value::U8(v) => sys::gguf_set_val_u8(ctx, key, *v),
            Value::I8(v) => sys::gguf_set_val_i8(ctx, key, *v),
            Value::U16(v) => sys::gguf_set_val_u16(ctx, key, *v),
            Value::I16(v) => sys::gguf_set_val_i16(ctx, key, *v),
            Value::U32(v) => sys::gguf_set_val_u32(ctx, key, *v),
            Value::I32(v) => sys::gguf_set_val_i32(ctx, key, *v),
            Value::U64(v) => sys::gguf_set_val_u64(ctx, key, *v),
            Value::I64(v) => sys::gguf_set_val_i64(ctx, key, *v),
            Value::F32(v) => sys::gguf_set_val_f32(ctx, key, *v),
            Value::F64(v) => sys::gguf_set_val_f64(ctx, key, *v),
            Value::Bool(v) => sys::gguf_set_val_bool(ctx, key, *v),
            Value::String(v) => sys::gguf_set_val_str(ctx, key, CString::new(&**v)?.as_ptr()),
            Value::Array(array) => set_array(context, &c_key, array)?,
        }
    }
    Ok(())
}

fn set_array(
    context: &mut Context,
    key: &CString,
    array: &Array,
) -> Result<(), std::ffi::NulError> {
    match array {
        Array::U8(v) => set_elements(context, key, sys::GGUF_TYPE_UINT8, v),
        Array::I8(v) => set_elements(context, key, sys::GGUF_TYPE_INT8, v),
        Array::U16(v) => set_elements(context, key, sys::GGUF_TYPE_UINT16, v),
        Array::I16(v) => set_elements(context, key, sys::GGUF_TYPE_INT16, v),
        Array::U32(v) => set_elements(context, key, sys::GGUF_TYPE_UINT32, v),
        Array::I32(v) => set_elements(context, key, sys::GGUF_TYPE_INT32, v),
        Array::U64(v) => set_elements(context, key, sys::GGUF_TYPE_UINT64, v),
        Array::I64(v) => set_elements(context, key, sys::GGUF_TYPE_INT64, v),
        Array::F32(v) => set_elements(context, key, sys::GGUF_TYPE_FLOAT32, v),
        Array::F64(v) => set_elements(context, key, sys::GGUF_TYPE_FLOAT64, v),
        Array::Bool(v) => set_elements(context, key, sys::GGUF_TYPE_BOOL, v),
        Array::String(v) => return set_strings(context, key, v),
    }
    Ok(())
}

/// `T` must be the number type that `ty` stands for, or `bool`, which is stored as a byte.
fn set_elements<T: Copy>(context: &mut Context, key: &CString, ty: sys::gguf_type, values: &[T]) {
    let data = values.as_ptr().cast();
    // SAFETY: the context is valid, the key ends in NUL, and `values` are so many elements of `ty`'s size,
    // which ggml copies.
    unsafe { sys::gguf_set_arr_data(context.as_mut_ptr(), key.as_ptr(), ty, data, values.len()) };
}

fn set_strings(
    context: &mut Context,
    key: &CString,
    values: &[String],
) -> Result<(), std::ffi::NulError> {
    let texts = values.iter().map(|v| CString::new(&**v)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = texts.iter().map(|t| t.as_ptr()).collect();
    let n = pointers.len();
    // SAFETY: the context is valid, key and strings end in NUL; ggml copies them.
    unsafe { sys::gguf_set_arr_str(context.as_mut_ptr(), key.as_ptr(), pointers.as_mut_ptr(), n) };
    Ok(())
}
