//! Owner of ggml's `gguf_context`, with every access checked before it is made.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use ggml_sys as sys;

use super::{Array, Value};
use crate::log;

/// A `gguf_context`, freed when dropped.
#[derive(Debug)]
pub(super) struct Context(NonNull<sys::gguf_context>);

// SAFETY: a gguf_context is plain data without thread affinity, and nothing else points to it.
unsafe impl Send for Context {}
// SAFETY: through `&Context` only `const` getters are called, which do not modify anything.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer came from gguf_init_* and is freed only here.
        unsafe { sys::gguf_free(self.0.as_ptr()) }
    }
}

impl Context {
    /// A context without keys and tensors.
    pub fn new() -> Self {
        log::install();
        // SAFETY: no preconditions.
        let raw = unsafe { sys::gguf_init_empty() };
        Self(NonNull::new(raw).expect("C++ allocation throws instead of returning null"))
    }

    /// Parses the metadata at the start of `bytes`; the error is ggml's message.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
        let (raw, message) = log::capture(|| {
            // SAFETY: the bytes are valid for the call; nothing keeps a pointer to them.
            unsafe { sys::gguf_init_from_buffer(bytes.as_ptr().cast(), bytes.len(), params) }
        });
        let unnamed = || "not a readable GGUF file".to_owned();
        NonNull::new(raw).map(Self).ok_or_else(|| message.unwrap_or_else(unnamed))
    }

    pub fn as_ptr(&self) -> *const sys::gguf_context {
        self.0.as_ptr()
    }

    pub fn as_mut_ptr(&mut self) -> *mut sys::gguf_context {
        self.0.as_ptr()
    }

    pub fn alignment(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::gguf_get_alignment(self.as_ptr()) }
    }

    pub fn data_offset(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { sys::gguf_get_data_offset(self.as_ptr()) }
    }

    pub fn n_tensors(&self) -> i64 {
        // SAFETY: the context is valid.
        unsafe { sys::gguf_get_n_tensors(self.as_ptr()) }
    }

    /// Name, raw type, dimensions and offset within the data of tensor `id`.
    pub fn tensor(&self, id: i64) -> (String, u32, [i64; sys::GGML_MAX_DIMS as usize], usize) {
        assert!((0..self.n_tensors()).contains(&id));
        let ctx = self.as_ptr();
        // SAFETY: `id` is in range (checked above); the name ends in NUL, the dimensions are an array of
        // GGML_MAX_DIMS, and both are copied while the context is borrowed.
        unsafe {
            let name = text(sys::gguf_get_tensor_name(ctx, id)).into_owned();
            let dims = *sys::gguf_get_tensor_ne(ctx, id).cast();
            let ty = sys::gguf_get_tensor_type(ctx, id);
            (name, ty, dims, sys::gguf_get_tensor_offset(ctx, id))
        }
    }

    /// All keys in file order.
    pub fn keys(&self) -> Vec<String> {
        // SAFETY: the context is valid and the ids are in range; the keys end in NUL.
        unsafe {
            (0..sys::gguf_get_n_kv(self.as_ptr()))
                .map(|id| text(sys::gguf_get_key(self.as_ptr(), id)).into_owned())
                .collect()
        }
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Value> {
        let key = CString::new(key).ok()?;
        // SAFETY: the context is valid and the key ends in NUL.
        let id = unsafe { sys::gguf_find_key(self.as_ptr(), key.as_ptr()) };
        (id >= 0).then(|| self.value_at(id))
    }

    fn value_at(&self, id: i64) -> Value {
        let ctx = self.as_ptr();
        // SAFETY: `id` was found by ggml, each getter is called for the type that the value has.
        unsafe {
            match sys::gguf_get_kv_type(ctx, id) {
                sys::GGUF_TYPE_UINT8 => Value::U8(sys::gguf_get_val_u8(ctx, id)),
                sys::GGUF_TYPE_INT8 => Value::I8(sys::gguf_get_val_i8(ctx, id)),
                sys::GGUF_TYPE_UINT16 => Value::U16(sys::gguf_get_val_u16(ctx, id)),
                sys::GGUF_TYPE_INT16 => Value::I16(sys::gguf_get_val_i16(ctx, id)),
                sys::GGUF_TYPE_UINT32 => Value::U32(sys::gguf_get_val_u32(ctx, id)),
                sys::GGUF_TYPE_INT32 => Value::I32(sys::gguf_get_val_i32(ctx, id)),
                sys::GGUF_TYPE_FLOAT32 => Value::F32(sys::gguf_get_val_f32(ctx, id)),
                sys::GGUF_TYPE_UINT64 => Value::U64(sys::gguf_get_val_u64(ctx, id)),
                sys::GGUF_TYPE_INT64 => Value::I64(sys::gguf_get_val_i64(ctx, id)),
                sys::GGUF_TYPE_FLOAT64 => Value::F64(sys::gguf_get_val_f64(ctx, id)),
                // Read as a byte: a file may hold any, and only 0 and 1 are valid as `bool`.
                sys::GGUF_TYPE_BOOL => {
                    Value::Bool(*sys::gguf_get_val_data(ctx, id).cast::<u8>() != 0)
                }
                sys::GGUF_TYPE_STRING => {
                    Value::String(text(sys::gguf_get_val_str(ctx, id)).into_owned())
                }
                _ => Value::Array(self.array_at(id)),
            }
        }
    }

    fn array_at(&self, id: i64) -> Array {
        // SAFETY: `id` is that of an array, and each element type is read as what it is.
        unsafe {
            match sys::gguf_get_arr_type(self.as_ptr(), id) {
                sys::GGUF_TYPE_UINT8 => Array::U8(self.elements(id)),
                sys::GGUF_TYPE_INT8 => Array::I8(self.elements(id)),
                sys::GGUF_TYPE_UINT16 => Array::U16(self.elements(id)),
                sys::GGUF_TYPE_INT16 => Array::I16(self.elements(id)),
                sys::GGUF_TYPE_UINT32 => Array::U32(self.elements(id)),
                sys::GGUF_TYPE_INT32 => Array::I32(self.elements(id)),
                sys::GGUF_TYPE_FLOAT32 => Array::F32(self.elements(id)),
                sys::GGUF_TYPE_UINT64 => Array::U64(self.elements(id)),
                sys::GGUF_TYPE_INT64 => Array::I64(self.elements(id)),
                sys::GGUF_TYPE_FLOAT64 => Array::F64(self.elements(id)),
                sys::GGUF_TYPE_BOOL => {
                    Array::Bool(self.elements::<u8>(id).into_iter().map(|b| b != 0).collect())
                }
                _ => Array::String(self.strings(id)),
            }
        }
    }

    /// Elements of the array `id`.
    ///
    /// # Safety
    /// The elements must be `T`s, for which every bit pattern is valid.
    unsafe fn elements<T: Copy>(&self, id: i64) -> Vec<T> {
        // SAFETY: `id` is that of an array of numbers (promised by the caller); ggml keeps `n` of them in
        // one block, not necessarily aligned, which lives as long as the context.
        unsafe {
            let n = sys::gguf_get_arr_n(self.as_ptr(), id);
            let data: *const T = sys::gguf_get_arr_data(self.as_ptr(), id).cast();
            (0..n).map(|i| data.add(i).read_unaligned()).collect()
        }
    }

    /// Elements of the array `id`.
    ///
    /// # Safety
    /// The elements must be strings.
    unsafe fn strings(&self, id: i64) -> Vec<String> {
        // SAFETY: `id` is that of an array of strings (promised by the caller), indices are below `n`.
        unsafe {
            (0..sys::gguf_get_arr_n(self.as_ptr(), id))
                .map(|i| text(sys::gguf_get_arr_str(self.as_ptr(), id, i)).into_owned())
                .collect()
        }
    }
}

/// The C string at `s`, bad UTF-8 replaced.
///
/// # Safety
/// `s` must end in NUL and live as long as `'a`.
unsafe fn text<'a>(s: *const c_char) -> Cow<'a, str> {
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(s) }.to_string_lossy()
}
