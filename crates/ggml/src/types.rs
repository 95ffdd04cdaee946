//! Element types of tensors: sizes, conversion to and from `f32`.

use std::ffi::CStr;
use std::fmt;

use ggml_sys as sys;
use rayon::prelude::*;

/// Why a type cannot do what was asked.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum TypeError {
    /// No type of this ggml has the number.
    #[error("{0} is no ggml type")]
    Unknown(u32),
    /// The type holds no weights (integers), or only exists inside of computations.
    #[error("{0} cannot be converted to F32")]
    NotFloat(Type),
    /// ggml has no quantizer for the type.
    #[error("{0} cannot be quantized to")]
    NotQuantizable(Type),
    /// The number of bytes or values does not fit the type.
    #[error("{n_bytes} bytes of {ty} are not {n_values} values")]
    Size {
        /// The type.
        ty: Type,
        /// Number of bytes given.
        n_bytes: usize,
        /// Number of values given.
        n_values: usize,
    },
    /// A row is not a whole number of blocks.
    #[error("rows of {n_per_row} values are no multiple of the {} values in a block of {ty}", ty.block_size())]
    Row {
        /// The type.
        ty: Type,
        /// Length of a row in values.
        n_per_row: usize,
    },
    /// The type needs an importance for every input.
    #[error("{0} cannot be quantized to without an importance matrix: give --imatrix")]
    NeedsImportance(Type),
    /// A value is NaN, infinite or so large that its square overflows; quantizers do not survive that.
    #[error("value {index} is {value}, which cannot be quantized")]
    NotFinite {
        /// Flat position; counts weights, or inputs when an importance is meant.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// An element type that this ggml knows; one block of it is the smallest unit of storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type(sys::ggml_type);

/// Names for the types that programs mention.
macro_rules! constants {
    ($($name:ident = $raw:ident),* $(,)?) => {
        #[allow(missing_docs, reason = "each is the ggml type of the same name")]
        impl Type { $(pub const $name: Self = Self(sys::$raw);)* }
    };
}

constants! {
    F32 = GGML_TYPE_F32, F16 = GGML_TYPE_F16, BF16 = GGML_TYPE_BF16,
    I8 = GGML_TYPE_I8, I16 = GGML_TYPE_I16, I32 = GGML_TYPE_I32,
    Q4_0 = GGML_TYPE_Q4_0, Q4_1 = GGML_TYPE_Q4_1, Q5_0 = GGML_TYPE_Q5_0, Q5_1 = GGML_TYPE_Q5_1,
    Q8_0 = GGML_TYPE_Q8_0, Q2_K = GGML_TYPE_Q2_K, Q3_K = GGML_TYPE_Q3_K, Q4_K = GGML_TYPE_Q4_K,
    Q5_K = GGML_TYPE_Q5_K, Q6_K = GGML_TYPE_Q6_K, IQ4_NL = GGML_TYPE_IQ4_NL,
    IQ4_XS = GGML_TYPE_IQ4_XS, IQ2_XXS = GGML_TYPE_IQ2_XXS, IQ2_XS = GGML_TYPE_IQ2_XS,
    IQ2_S = GGML_TYPE_IQ2_S, IQ3_XXS = GGML_TYPE_IQ3_XXS, IQ3_S = GGML_TYPE_IQ3_S,
}

/// Rows given to one task: enough to hide the scheduling, few enough to spread a small matrix.
pub(crate) const ROWS_PER_TASK: usize = 16;

impl Type {
    /// All types, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..sys::GGML_TYPE_COUNT).filter_map(|raw| Self::try_from(raw).ok())
    }

    /// The type called `name` (`q5_K`), upper and lower case alike.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// ggml's name for it: `f32`, `q5_K`, `iq4_nl`.
    #[must_use]
    pub fn name(self) -> &'static str {
        // SAFETY: the type is known to ggml, whose names are static strings.
        let name = unsafe { CStr::from_ptr(sys::ggml_type_name(self.0)) };
        name.to_str().expect("ggml's names are ASCII")
    }

    /// Number of values in a block; 1 for plain types.
    #[must_use]
    pub fn block_size(self) -> usize {
        // SAFETY: the type is known to ggml.
        to_size(unsafe { sys::ggml_blck_size(self.0) })
    }

    /// Size of a block in bytes.
    #[must_use]
    pub fn type_bytes(self) -> usize {
        // SAFETY: the type is known to ggml.
        unsafe { sys::ggml_type_size(self.0) }
    }

    /// Size of `n` values in bytes; `None` if they are no whole number of blocks or it overflows.
    #[must_use]
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        let whole = n.is_multiple_of(self.block_size());
        whole.then(|| (n / self.block_size()).checked_mul(self.type_bytes()))?
    }

    /// Size in bytes of a tensor of `dims`, innermost first; `None` as for [`Self::row_bytes`].
    #[must_use]
    pub fn tensor_bytes(self, dims: &[usize]) -> Option<usize> {
        let (&first, rest) = dims.split_first()?;
        rest.iter().try_fold(self.row_bytes(first)?, |bytes, &n| bytes.checked_mul(n))
    }

    /// Bits for one value, block scales included.
    #[must_use]
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.type_bytes() as f64 / self.block_size() as f64
    }

    /// Whether [`Self::to_float`] works.
    #[must_use]
    pub fn has_to_float(self) -> bool {
        self == Self::F32 || self.traits().to_float.is_some()
    }

    /// Converts whole blocks to `f32`.
    ///
    /// # Errors
    /// [`TypeError::NotFloat`] for integers and types of intermediate results; [`TypeError::Size`] if
    /// `bytes` is not exactly as long as `out.len()` values.
    pub fn to_float(self, bytes: &[u8], out: &mut [f32]) -> Result<(), TypeError> {
        if self.row_bytes(out.len()) != Some(bytes.len()) {
            return Err(TypeError::Size { ty: self, n_bytes: bytes.len(), n_values: out.len() });
        }
        if self == Self::F32 {
            copy_f32(bytes, out);
            return Ok(());
        }
        let to_float = self.traits().to_float.ok_or(TypeError::NotFloat(self))?;
        if bytes.as_ptr().cast::<u64>().is_aligned() {
            // SAFETY: `bytes` are whole blocks that give `out.len()` values (checked above), aligned for
            // every block struct; the function writes exactly that many floats.
            unsafe { to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
            return Ok(());
        }
        self.to_float(Aligned::copy_of(bytes).as_bytes(), out)
    }

    /// Converts rows of `n_per_row` values to `f32`, on rayon's threads.
    ///
    /// # Errors
    /// [`TypeError::Row`] if a row is no whole number of blocks, else as [`Self::to_float`].
    pub fn rows_to_float(
        self,
        bytes: &[u8],
        n_per_row: usize,
        out: &mut [f32],
    ) -> Result<(), TypeError> {
        let row_bytes = self.row_bytes(n_per_row).ok_or(TypeError::Row { ty: self, n_per_row })?;
        if self.row_bytes(out.len()) != Some(bytes.len()) {
            return Err(TypeError::Size { ty: self, n_bytes: bytes.len(), n_values: out.len() });
        }
        if out.is_empty() {
            return Ok(());
        }
        out.par_chunks_mut(n_per_row * ROWS_PER_TASK)
            .zip(bytes.par_chunks(row_bytes * ROWS_PER_TASK))
            .try_for_each(|(out, bytes)| self.to_float(bytes, out))
    }

    /// ggml's number for the type, as stored in files.
    #[must_use]
    pub fn raw(self) -> u32 {
        self.0
    }

    pub(crate) fn traits(self) -> &'static sys::ggml_type_traits {
        // SAFETY: the type is known to ggml, whose table of traits is static.
        unsafe { &*sys::ggml_get_type_traits(self.0) }
    }
}

impl TryFrom<u32> for Type {
    type Error = TypeError;

    /// The type with ggml's number `raw`; removed types (block size 0) are unknown.
    fn try_from(raw: u32) -> Result<Self, TypeError> {
        // SAFETY: only called for numbers inside of ggml's table.
        if raw < sys::GGML_TYPE_COUNT && unsafe { sys::ggml_blck_size(raw) } > 0 {
            Ok(Self(raw))
        } else {
            Err(TypeError::Unknown(raw))
        }
    }
}

impl Type {
    /// The type of a sidecar's elements that has this name, if there is one.
    #[must_use]
    pub fn element_type(self) -> Option<format::ElementType> {
        use format::ElementType::{F16, F32, I8, I16, I32};
        [F32, F16, I8, I16, I32].into_iter().find(|element| Self::from(*element) == self)
    }
}

impl From<format::ElementType> for Type {
    fn from(element: format::ElementType) -> Self {
        match element {
            format::ElementType::F32 => Self::F32,
            format::ElementType::F16 => Self::F16,
            format::ElementType::I8 => Self::I8,
            format::ElementType::I16 => Self::I16,
            format::ElementType::I32 => Self::I32,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn to_size(n: i64) -> usize {
    usize::try_from(n).expect("ggml's sizes are not negative")
}

fn copy_f32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *out = f32::from_le_bytes(bytes.try_into().expect("exact chunk"));
    }
}

/// Bytes at an address that suits every block struct: a GGUF may align its data less than C asks for.
pub(crate) struct Aligned {
    words: Vec<u64>,
    n_bytes: usize,
}

impl Aligned {
    pub fn zeroed(n_bytes: usize) -> Self {
        Self { words: vec![0; n_bytes.div_ceil(8)], n_bytes }
    }

    fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.as_bytes_mut().copy_from_slice(bytes);
        copy
    }

    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the words are initialized and at least `n_bytes` long; any bytes are valid `u8`s.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.n_bytes) }
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and any bytes are valid `u64`s.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.n_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of one row that no quantizer finds special.
    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    #[test]
    fn names_and_numbers_round_trip() {
        for ty in Type::all() {
            assert_eq!(Type::from_name(ty.name()), Some(ty));
            assert_eq!(Type::try_from(ty.raw()), Ok(ty));
        }
        assert_eq!(Type::from_name("q5_k"), Some(Type::Q5_K));
        assert_eq!(Type::from_name("q9_z"), None);
    }

    #[test]
    fn removed_and_future_types_are_unknown() {
        for raw in [4, 5, 31, 36, sys::GGML_TYPE_COUNT, u32::MAX] {
            assert_eq!(Type::try_from(raw), Err(TypeError::Unknown(raw)));
        }
    }

    #[test]
    fn sizes_are_those_of_the_block_structs() {
        assert_eq!(Type::Q5_K.row_bytes(512), Some(2 * 176));
        assert_eq!(Type::Q5_K.row_bytes(576), None);
        assert_eq!(Type::Q4_1.tensor_bytes(&[64, 3]), Some(2 * 3 * 20));
        assert_eq!(Type::F32.row_bytes(usize::MAX), None);
        assert_eq!(Type::I8.tensor_bytes(&[usize::MAX, 2]), None);
        assert!((Type::Q5_K.bits_per_weight() - 5.5).abs() < 1e-12);
    }

    #[test]
    fn plain_floats_convert_exactly() {
        let bytes: Vec<u8> = [1.5f32, -0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = [0.0; 2];
        Type::F32.to_float(&bytes, &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), [1.5f32, -0.0].map(f32::to_bits));
        Type::F16.to_float(&[0x00, 0x3c, 0x00, 0xc0], &mut out).unwrap();
        assert_eq!(out, [1.0, -2.0]);
    }

    #[test]
    fn wrong_sizes_and_integers_are_refused() {
        let mut out = [0.0; 4];
        assert!(matches!(Type::F32.to_float(&[0; 15], &mut out), Err(TypeError::Size { .. })));
        assert_eq!(Type::I8.to_float(&[0; 4], &mut out), Err(TypeError::NotFloat(Type::I8)));
        assert!(!Type::I32.has_to_float());
        let error = Type::Q8_0.rows_to_float(&[], 33, &mut []);
        assert_eq!(error, Err(TypeError::Row { ty: Type::Q8_0, n_per_row: 33 }));
    }

    #[test]
    fn unaligned_bytes_convert_as_aligned_ones() {
        let bytes = Type::Q4_1.quantize(&row(64), 64, None).unwrap();
        let mut aligned = vec![0.0; 64];
        Type::Q4_1.to_float(&bytes, &mut aligned).unwrap();
        for shift in 1..8 {
            let mut shifted = vec![0u8; shift];
            shifted.extend(&bytes);
            let mut out = vec![0.0; 64];
            Type::Q4_1.to_float(&shifted[shift..], &mut out).unwrap();
            assert_eq!(out, aligned);
        }
    }
}
