//! Tensors with data in the CPU backend's buffers, aligned and placed as llama.cpp would.

use std::ptr::NonNull;

use format::ElementType;
use ggml_sys as sys;

use super::{ProductError, to_i64};
use crate::Type;
use crate::arena::Arena;

/// A kind of memory of the CPU backend; ggml's are static, so it may be copied freely.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryKind(NonNull<sys::ggml_backend_buffer_type>);

impl MemoryKind {
    /// Plain memory: the bytes of the file as they are.
    pub fn plain() -> Self {
        // SAFETY: no preconditions.
        let raw = unsafe { sys::ggml_backend_cpu_buffer_type() };
        Self(NonNull::new(raw).expect("ggml was built with a CPU backend"))
    }

    /// The kinds that the CPU backend offers besides, in the order in which llama.cpp tries them.
    pub fn extra() -> Vec<Self> {
        // SAFETY: the CPU backend is registered as long as the program runs; the function asked for has
        // the type that ggml-backend.h gives for its name, and returns a list that ends with a null.
        unsafe {
            let device = cpu_device();
            let registry = sys::ggml_backend_dev_backend_reg(device);
            let name = c"ggml_backend_dev_get_extra_bufts";
            let address = sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            if address.is_null() {
                return Vec::new();
            }
            let list = std::mem::transmute::<
                *mut std::ffi::c_void,
                sys::ggml_backend_dev_get_extra_bufts_t,
            >(address);
            let mut next = list.map_or(std::ptr::null_mut(), |list| list(device));
            let mut kinds = Vec::new();
            while !next.is_null()
                && let Some(kind) = NonNull::new(*next)
            {
                kinds.push(Self(kind));
                next = next.add(1);
            }
            kinds
        }
    }

    /// ggml's name: `CPU`, `CPU_REPACK`.
    pub fn name(self) -> &'static str {
        // SAFETY: the kind is live and its name a static string.
        let name =
            unsafe { std::ffi::CStr::from_ptr(sys::ggml_backend_buft_name(self.0.as_ptr())) };
        name.to_str().unwrap_or("?")
    }

    /// Whether the CPU backend multiplies a matrix [d_in, d_out] in this memory with F32 inputs; asked
    /// as llama.cpp's loader does, with an empty buffer.
    pub fn multiplies(self, ty: Type, ne: [i64; 2], n_experts: Option<i64>) -> bool {
        let Ok(empty) = Buffer::new(self, 0) else { return false };
        let mut arena = Arena::new(4, 0);
        // SAFETY: the arena has room for four tensors, which have no data; their sizes were checked by
        // the caller. The buffer outlives the question.
        unsafe {
            let w = arena.tensor(ty, &[ne[0], ne[1], n_experts.unwrap_or(1), 1]);
            let x = arena.tensor(Type::F32, &[ne[0], 1, 1, 1]);
            let y = if n_experts.is_some() {
                let ids = arena.tensor(Type::from(ElementType::I32), &[1, 1, 1, 1]);
                sys::ggml_mul_mat_id(arena.as_mut_ptr(), w, x, ids)
            } else {
                sys::ggml_mul_mat(arena.as_mut_ptr(), w, x)
            };
            (*w).buffer = empty.0.as_ptr();
            sys::ggml_backend_dev_supports_op(cpu_device(), y)
        }
    }
}

/// The CPU as ggml's device.
fn cpu_device() -> sys::ggml_backend_dev_t {
    // SAFETY: the CPU backend's registry is static and has exactly one device.
    unsafe { sys::ggml_backend_reg_dev_get(sys::ggml_backend_cpu_reg(), 0) }
}

/// Memory of one kind, freed when dropped.
#[derive(Debug)]
pub(super) struct Buffer(NonNull<sys::ggml_backend_buffer>);

impl Buffer {
    pub fn new(kind: MemoryKind, n_bytes: usize) -> Result<Self, ProductError> {
        // SAFETY: the kind is live.
        let raw = unsafe { sys::ggml_backend_buft_alloc_buffer(kind.0.as_ptr(), n_bytes) };
        NonNull::new(raw).map(Self).ok_or(ProductError::Memory(n_bytes))
    }

    /// Sets all bytes to 0.
    pub fn clear(&mut self) {
        // SAFETY: the buffer is live, and `&mut self` keeps others away.
        unsafe { sys::ggml_backend_buffer_clear(self.0.as_ptr(), 0) }
    }

    /// Gives `tensor` the beginning of the buffer.
    ///
    /// # Safety
    /// The tensor is live, has no data yet, fits into the buffer and is not used after it.
    pub unsafe fn place(&self, tensor: *mut sys::ggml_tensor) {
        // SAFETY: promised by the caller; the buffer is not empty, so it has a base.
        let status = unsafe {
            let base = sys::ggml_backend_buffer_get_base(self.0.as_ptr());
            sys::ggml_backend_tensor_alloc(self.0.as_ptr(), tensor, base)
        };
        assert_eq!(status, sys::GGML_STATUS_SUCCESS, "the CPU's buffers accept every tensor");
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it came from alloc_buffer and is freed only here.
        unsafe { sys::ggml_backend_buffer_free(self.0.as_ptr()) }
    }
}

/// A tensor with data. Immutable from then on: products only read it.
#[derive(Debug)]
pub(super) struct Resident {
    tensor: NonNull<sys::ggml_tensor>,
    #[cfg_attr(not(feature = "hook"), allow(dead_code))]
    ty: Type,
    #[cfg_attr(not(feature = "hook"), allow(dead_code))]
    dims: [usize; 4],
    n_bytes: usize,
    _arena: Arena,
    _buffer: Buffer,
}

impl Resident {
    /// A tensor of `dims` (one to four, innermost first) with `data` in the type's own layout, which
    /// some kinds of memory rearrange.
    ///
    /// In a kind other than plain memory, [`MemoryKind::multiplies`] must hold for the tensor.
    pub fn new(
        kind: MemoryKind,
        ty: Type,
        dims: &[usize],
        data: &[u8],
    ) -> Result<Self, ProductError> {
        let expected = ty.tensor_bytes(dims).ok_or(ProductError::Range("tensor"))?;
        if data.len() != expected {
            return Err(ProductError::Size { what: "bytes", expected, got: data.len() });
        }
        if expected == 0 || dims.len() > 4 {
            return Err(ProductError::Range("tensor"));
        }
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        let dims = all;
        let mut arena = Arena::new(1, 0);
        // SAFETY: the arena has room for one tensor, whose size was computed above without overflow; the
        // buffer is as large as its kind asks for, and owned by the same value as the tensor. `data` is
        // as long as the tensor.
        unsafe {
            let tensor = NonNull::new(arena.tensor(ty, &dims.map(to_i64)))
                .ok_or(ProductError::Range("tensor"))?;
            let n_bytes = sys::ggml_backend_buft_get_alloc_size(kind.0.as_ptr(), tensor.as_ptr());
            let buffer = Buffer::new(kind, n_bytes)?;
            buffer.place(tensor.as_ptr());
            sys::ggml_backend_tensor_set(tensor.as_ptr(), data.as_ptr().cast(), 0, data.len());
            Ok(Self { tensor, ty, dims, n_bytes, _arena: arena, _buffer: buffer })
        }
    }

    /// The tensor, valid as long as `self`.
    pub fn as_ptr(&self) -> *mut sys::ggml_tensor {
        self.tensor.as_ptr()
    }

    /// Bytes of memory.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

#[cfg(feature = "hook")]
impl Resident {
    /// Element type.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Dimensions, innermost first; unused ones are 1.
    pub fn dims(&self) -> [usize; 4] {
        self.dims
    }

    /// The first byte; valid as long as `self`.
    pub fn data(&self) -> *const u8 {
        // SAFETY: the tensor is live.
        unsafe { (*self.tensor.as_ptr()).data.cast_const().cast() }
    }
}
