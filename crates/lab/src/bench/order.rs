//! What is measured.

use dictionary::GlobalParams;
use format::{CodecError, MatrixShape, Scheme, SidecarSpec};
use ggml::Type;
use sections::SectionsParams;

use crate::bench::machine;

/// How much larger than the last-level cache the copies of a matrix are together, at least.
const CACHE_FACTOR: usize = 4;

/// What is measured, and how.
#[derive(Debug)]
pub struct Order {
    /// Shape of the matrix.
    pub shape: MatrixShape,
    /// Columns multiplied at once, one measurement each.
    pub batches: Vec<usize>,
    /// Threads.
    pub n_threads: usize,
    /// Our matrix; has tensors for `shape`.
    pub coded: Coded,
    /// Types of ggml, each once; the rows of each have whole blocks.
    pub against: Vec<Type>,
    /// Bytes that the copies of a matrix fill at least.
    pub cold_bytes: usize,
    /// Passes of every contender.
    pub rounds: usize,
}

/// How our matrix is coded: the codec's parameters, of which only those that decide on sizes count.
#[derive(Debug)]
pub enum Coded {
    /// Scheme `sections`.
    Sections(SectionsParams),
    /// A scheme with one dictionary over the whole input.
    Global(GlobalParams),
}

impl Coded {
    /// The scheme, as in files.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Sections(_) => Scheme::Sections.as_str(),
            Self::Global(params) => params.scheme.as_str(),
        }
    }

    /// The tensors of a matrix of `shape`.
    ///
    /// # Errors
    /// The codec's, if the parameters do not fit the shape.
    pub fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        match self {
            Self::Sections(params) => params.sidecars(shape),
            Self::Global(params) => params.sidecars(shape),
        }
    }

    /// The flags that make this matrix, and their values.
    pub(super) fn arguments(&self, shape: MatrixShape) -> [(&'static str, f64); 2] {
        match self {
            Self::Sections(p) => [("bpw", p.sections as f64 / 2.0), ("outliers", p.outlier_share)],
            Self::Global(p) => [("dict_M", p.n_atoms(shape) as f64), ("dict_k", p.k as f64)],
        }
    }
}

impl Order {
    /// Bytes that the copies of a matrix have to fill so that a pass over them reads memory.
    #[must_use]
    pub fn default_cold_bytes() -> usize {
        CACHE_FACTOR * machine::last_level_cache_bytes()
    }

    /// Copies of a matrix of `n_bytes`.
    pub(super) fn n_copies(&self, n_bytes: usize) -> usize {
        self.cold_bytes.div_ceil(n_bytes.max(1)).max(1)
    }
}
