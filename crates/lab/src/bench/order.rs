//! What is measured.

use dictionary::GlobalParams;
use format::{CodecError, MatrixShape, Scheme, SidecarSpec};
use ggml::Type;
use ggml::product::Routing;
use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use sections::SectionsParams;

use crate::bench::machine;

/// How much larger than the last-level cache the copies of a matrix are together, at least.
const CACHE_FACTOR: usize = 4;

/// What is measured, and how.
#[derive(Debug)]
pub struct Order {
    /// Shape of the matrix, or of that of each expert.
    pub shape: MatrixShape,
    /// Experts with such a matrix each, and how many of them a token uses.
    pub experts: Option<Experts>,
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

/// Experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// All of them.
    pub n: usize,
    /// Those of a token.
    pub n_used: usize,
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

    /// Matrices of a contender.
    pub(super) fn n_experts(&self) -> usize {
        self.experts.map_or(1, |experts| experts.n)
    }

    /// All rows, of which those of experts are one matrix.
    pub(super) fn stacked(&self) -> MatrixShape {
        MatrixShape::new(self.shape.d_in, self.shape.d_out * self.n_experts())
    }

    /// Tokens that a matrix meets in a product of `n_tokens`, on average.
    pub(super) fn n_tokens_per_matrix(&self, n_tokens: usize) -> usize {
        self.experts.map_or(n_tokens, |experts| (n_tokens * experts.n_used / experts.n).max(1))
    }

    /// Which experts work in the products of a pass, for `n_tokens` tokens each; none without experts. So many that every
    /// expert is in use about once.
    pub(super) fn routings(&self, n_tokens: usize) -> Vec<Routing> {
        let Some(Experts { n, n_used }) = self.experts else { return Vec::new() };
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut left: Vec<usize> = Vec::new();
        let mut draw = || {
            if left.len() < n_used {
                left = index::sample(&mut rng, n, n).into_vec();
            }
            left.split_off(left.len() - n_used)
        };
        let products = n.div_ceil(n_used * n_tokens).max(1);
        let of_token = |experts: Vec<usize>| experts.into_iter().map(|e| e as i32);
        let mut routing = || (0..n_tokens).flat_map(|_| of_token(draw())).collect();
        (0..products).map(|_| Routing { n_used, ids: routing() }).collect()
    }

    /// Copies of a matrix of `n_bytes`.
    pub(super) fn n_copies(&self, n_bytes: usize) -> usize {
        self.cold_bytes.div_ceil(n_bytes.max(1)).max(1)
    }
}
