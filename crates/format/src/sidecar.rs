//! Sidecar tensors: what a codec writes into the GGUF in place of a dense matrix.

use half::f16;

use crate::CodecError;

/// Element type of a sidecar tensor; the names are those of `ggml_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ElementType {
    /// 32-bit IEEE float, little endian.
    F32,
    /// 16-bit IEEE float, little endian.
    F16,
    /// Signed byte; also used for packed codes, whose bits are not numbers.
    I8,
    /// Signed 16-bit integer, little endian.
    I16,
    /// Signed 32-bit integer, little endian.
    I32,
}

impl ElementType {
    /// Size of one element in bytes.
    #[must_use]
    pub fn n_bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::I16 => 2,
            Self::I8 => 1,
        }
    }
}

/// Name, type and shape of a sidecar tensor, known before anything is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarSpec {
    /// Last part of the tensor name: `dict` for `blk.3.ffn_up.dict`.
    pub suffix: &'static str,
    /// Element type.
    pub element_type: ElementType,
    /// Dimensions in ggml order, innermost first; one to four.
    pub dims: Vec<usize>,
}

impl SidecarSpec {
    /// Spec of the tensor `suffix` with elements `element_type` and `dims` (innermost first).
    #[must_use]
    pub fn new(suffix: &'static str, element_type: ElementType, dims: &[usize]) -> Self {
        Self { suffix, element_type, dims: dims.to_vec() }
    }

    /// Number of elements, `None` if the product overflows.
    #[must_use]
    pub fn n_elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Exact size of the data in bytes, `None` if it overflows.
    #[must_use]
    pub fn n_bytes(&self) -> Option<usize> {
        self.n_elements()?.checked_mul(self.element_type.n_bytes())
    }
}

/// A sidecar tensor with its data in file byte order (little endian).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Name, type and shape.
    pub spec: SidecarSpec,
    /// `spec.n_bytes()` bytes.
    pub data: Vec<u8>,
}

/// Builds one constructor and one reader per element type, so that byte order is decided once.
macro_rules! typed_access {
    ($make:ident, $read:ident, $ty:ty, $element:ident, $name:literal) => {
        #[doc = concat!("Sidecar of ", $name, " elements from values in ggml order.")]
        ///
        /// # Panics
        /// If the number of values is not the product of `dims`: a codec's own mistake.
        #[must_use]
        pub fn $make(suffix: &'static str, dims: &[usize], values: &[$ty]) -> Self {
            let spec = SidecarSpec::new(suffix, ElementType::$element, dims);
            assert_eq!(
                spec.n_elements(),
                Some(values.len()),
                "{suffix}: values do not fill {dims:?}"
            );
            let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Self { spec, data }
        }

        #[doc = concat!("The values, if the elements are ", $name, ".")]
        #[must_use]
        pub fn $read(&self) -> Option<Vec<$ty>> {
            (self.spec.element_type == ElementType::$element).then(|| {
                let exact = self.data.chunks_exact(size_of::<$ty>());
                exact.map(|b| <$ty>::from_le_bytes(b.try_into().expect("exact chunk"))).collect()
            })
        }
    };
}

impl Sidecar {
    typed_access!(from_f32, to_f32, f32, F32, "F32");
    typed_access!(from_f16, to_f16, f16, F16, "F16");
    typed_access!(from_i8, to_i8, i8, I8, "I8");
    typed_access!(from_i16, to_i16, i16, I16, "I16");
    typed_access!(from_i32, to_i32, i32, I32, "I32");

    /// The values of an F32 or F16 tensor as `f32`.
    #[must_use]
    pub fn to_floats(&self) -> Option<Vec<f32>> {
        match self.spec.element_type {
            ElementType::F32 => self.to_f32(),
            ElementType::F16 => Some(self.to_f16()?.into_iter().map(f16::to_f32).collect()),
            _ => None,
        }
    }
}

/// The sidecar whose name ends in `suffix`.
#[must_use]
pub fn find_sidecar<'a>(sidecars: &'a [Sidecar], suffix: &str) -> Option<&'a Sidecar> {
    sidecars.iter().find(|s| s.spec.suffix == suffix)
}

/// Total size of `specs` in bytes, `None` on overflow.
#[must_use]
pub fn n_bytes(specs: &[SidecarSpec]) -> Option<usize> {
    specs.iter().try_fold(0usize, |n, s| n.checked_add(s.n_bytes()?))
}

/// The sidecar that `spec` describes, its type, shape and data length checked.
///
/// Dimensions of 1 at the end do not count: GGUF readers drop or add them.
///
/// # Errors
/// [`CodecError::Sidecar`] if it is missing or differs.
pub fn checked_sidecar<'a>(
    sidecars: &'a [Sidecar],
    spec: &SidecarSpec,
) -> Result<&'a Sidecar, CodecError> {
    let bad = |reason| CodecError::Sidecar { suffix: spec.suffix, reason };
    let found = find_sidecar(sidecars, spec.suffix).ok_or_else(|| bad(String::from("missing")))?;
    if found.spec.element_type != spec.element_type {
        let (is, must) = (found.spec.element_type, spec.element_type);
        return Err(bad(format!("type is {is:?}, must be {must:?}")));
    }
    if without_ones(&found.spec.dims) != without_ones(&spec.dims) {
        return Err(bad(format!("shape is {:?}, must be {:?}", found.spec.dims, spec.dims)));
    }
    if spec.n_bytes() != Some(found.data.len()) {
        return Err(bad(format!("{} bytes of data do not fill {:?}", found.data.len(), spec.dims)));
    }
    Ok(found)
}

fn without_ones(dims: &[usize]) -> &[usize] {
    let len = dims.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1);
    &dims[..len]
}

/// The values of the F16 or F32 tensor `spec`, checked.
///
/// # Errors
/// [`CodecError::Sidecar`] if it is missing, differs or holds a value that is not finite.
pub fn finite_values(sidecars: &[Sidecar], spec: &SidecarSpec) -> Result<Vec<f32>, CodecError> {
    let values = checked_sidecar(sidecars, spec)?.to_floats().unwrap_or_default();
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => {
            let reason = format!("value {i} is {}", values[i]);
            Err(CodecError::Sidecar { suffix: spec.suffix, reason })
        }
    }
}

/// `value` as F16; beyond its range the nearest finite value (+-65504), NaN becomes 0.
#[must_use]
pub fn f16_clamped(value: f32) -> f16 {
    if value.is_nan() {
        return f16::ZERO;
    }
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}
