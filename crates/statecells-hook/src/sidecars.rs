//! Sidecar tensors as the host describes them, with checked types, shapes and sizes.

use format::{ElementType, FAMILIES};
use half::f16;

use crate::buffer::bytes_of;
use crate::error::HookError;

/// Numbers of `enum ggml_type` for the element types a sidecar may have; stable, since they are the file format.
const GGML_TYPES: [(i32, ElementType); 5] = [
    (0, ElementType::F32),
    (1, ElementType::F16),
    (24, ElementType::I8),
    (25, ElementType::I16),
    (26, ElementType::I32),
];

/// `enum ggml_type` of an element type.
pub fn ggml_type(element: ElementType) -> i32 {
    GGML_TYPES.iter().find(|(_, e)| *e == element).expect("the table holds every element type").0
}

/// One sidecar; its data is `'static` because the matrix keeps it, on the host's promise not to free it earlier.
#[derive(Clone, Debug)]
pub struct SidecarView {
    suffix: &'static str,
    element: ElementType,
    dims: [usize; 4],
    data: Option<&'static [u8]>,
}

impl SidecarView {
    /// # Safety
    /// A non-null `data` leads to `n_bytes` readable bytes that stay in place and unchanged as long as any matrix
    /// made from this view.
    pub unsafe fn from_raw(
        suffix: Option<&str>,
        ggml_type: i32,
        ne: [i64; 4],
        data: *const u8,
        n_bytes: usize,
    ) -> Result<Self, HookError> {
        let mut known = FAMILIES.into_iter().flat_map(|family| family.sidecars).copied();
        let suffix = known
            .find(|s| Some(*s) == suffix)
            .ok_or(HookError::Call("sidecar with an unknown suffix"))?;
        let element = GGML_TYPES.iter().find(|(n, _)| *n == ggml_type).map(|(_, e)| *e);
        let element = element.ok_or_else(|| {
            HookError::sidecar(
                suffix,
                format!("element type {ggml_type} is none a sidecar can have"),
            )
        })?;
        let mut dims = [0; 4];
        for (dim, n) in dims.iter_mut().zip(ne) {
            *dim = usize::try_from(n).map_err(|_| HookError::sidecar(suffix, "negative size"))?;
        }
        // SAFETY: the caller's promise on `data`.
        let data = if data.is_null() { None } else { Some(unsafe { bytes_of(data, n_bytes)? }) };
        let view = Self { suffix, element, dims, data };
        match (view.n_bytes(), view.data) {
            (None, _) => Err(HookError::sidecar(suffix, "size overflows")),
            (Some(n), Some(data)) if n != data.len() => Err(HookError::sidecar(
                suffix,
                format!("{} bytes of data instead of {n}", data.len()),
            )),
            _ => Ok(view),
        }
    }

    /// Last part of the tensor's name.
    pub fn suffix(&self) -> &'static str {
        self.suffix
    }

    /// The data as it lies in the file, whatever its type.
    pub fn raw(&self) -> Result<&'static [u8], HookError> {
        self.data.ok_or_else(|| self.error("not loaded"))
    }

    /// Element type.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Dimensions, innermost first; unused ones are 1.
    pub fn dims(&self) -> [usize; 4] {
        self.dims
    }

    fn n_bytes(&self) -> Option<usize> {
        self.dims.iter().try_fold(self.element.n_bytes(), |n, &d| n.checked_mul(d))
    }

    /// An error about this sidecar.
    pub fn error(&self, reason: impl Into<String>) -> HookError {
        HookError::sidecar(self.suffix, reason)
    }

    /// Checks type and shape (trailing ones may be left out).
    pub fn expect(&self, elements: &[ElementType], dims: &[usize]) -> Result<(), HookError> {
        if !elements.contains(&self.element) {
            let names: Vec<_> = elements.iter().map(|e| format!("{e:?}")).collect();
            return Err(self.error(format!(
                "type {:?} instead of {}",
                self.element,
                names.join(" or ")
            )));
        }
        let mut full = [1; 4];
        full[..dims.len()].copy_from_slice(dims);
        if self.dims != full {
            return Err(self.error(format!("shape {:?} instead of {full:?}", self.dims)));
        }
        Ok(())
    }

    fn typed<T>(&self, element: ElementType) -> Result<&'static [T], HookError> {
        let data = self.data.ok_or_else(|| self.error("not loaded"))?;
        if self.element != element {
            return Err(self.error(format!("type {:?} instead of {element:?}", self.element)));
        }
        let n = data.len() / size_of::<T>();
        // SAFETY: `data` is n * size_of::<T>() readable bytes (from_raw compared the length with the shape), every
        // bit pattern is a valid f16, f32, u8, i16 or i32, and bytes_of checks the alignment.
        unsafe { bytes_of(data.as_ptr().cast(), n) }.map_err(|_| self.error("misaligned data"))
    }

    /// The values of an F16 tensor.
    pub fn f16(&self) -> Result<&'static [f16], HookError> {
        self.typed(ElementType::F16)
    }

    /// The values of an F32 tensor.
    pub fn f32(&self) -> Result<&'static [f32], HookError> {
        self.typed(ElementType::F32)
    }

    /// The values of an I32 tensor.
    pub fn i32(&self) -> Result<&'static [i32], HookError> {
        self.typed(ElementType::I32)
    }

    /// The bytes of an I8 tensor, whose bits are no numbers.
    pub fn bytes(&self) -> Result<&'static [u8], HookError> {
        self.typed(ElementType::I8)
    }

    /// The values of an I16 tensor.
    pub fn i16(&self) -> Result<&'static [i16], HookError> {
        self.typed(ElementType::I16)
    }
}

/// All sidecars of one matrix.
#[derive(Debug)]
pub struct Sidecars(Vec<SidecarView>);

impl Sidecars {
    /// The sidecars of one matrix.
    pub fn new(views: Vec<SidecarView>) -> Self {
        Self(views)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &SidecarView> {
        self.0.iter()
    }

    /// The sidecar `suffix`, if the file has it.
    pub fn get(&self, suffix: &str) -> Option<&SidecarView> {
        self.0.iter().find(|s| s.suffix == suffix)
    }

    /// The sidecar `suffix`, which the scheme cannot do without.
    pub fn need(&self, suffix: &'static str) -> Result<&SidecarView, HookError> {
        self.get(suffix).ok_or_else(|| HookError::sidecar(suffix, "missing"))
    }
}
