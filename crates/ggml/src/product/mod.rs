//! Matrix products as llama.cpp runs them: weights where its loader would put them, one graph on ggml's
//! thread pool. Made once and run again and again, for measuring and comparing.
//!
//! # Shapes
//! A factor W: [d_in, d_out] times the input x: [d_in, n_tokens] gives y: [d_out, n_tokens].

#[cfg(feature = "hook")]
mod coded;
#[cfg(feature = "hook")]
mod experts;
mod graph;
mod memory;
mod pool;
#[cfg(test)]
mod tests;
mod weight;

use format::MatrixShape;

use crate::{Type, TypeError};

#[cfg(feature = "hook")]
pub use coded::CodedWeight;
#[cfg(feature = "hook")]
pub use experts::CodedExperts;
pub use graph::Products;
pub use pool::ThreadPool;
pub use weight::Weight;

/// Why a product cannot be made or has failed.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ProductError {
    /// ggml's CPU backend multiplies with no such weights.
    #[error("{0} has no matrix product on the CPU")]
    NoProduct(Type),
    /// The matrix does not suit the type.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A number of elements or bytes is not what the shapes say.
    #[error("{what}: expected {expected}, got {got}")]
    Size {
        /// What was counted.
        what: &'static str,
        /// What the shapes ask for.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// A dimension is 0, or a size leaves the range of the machine.
    #[error("{0} is 0 or too large")]
    Range(&'static str),
    /// The memory was refused.
    #[error("no memory for {0} bytes")]
    Memory(usize),
    /// The run-time hook refuses the coded matrix, or failed while it ran.
    #[error("{0}")]
    Hook(String),
}

/// One matrix of a graph.
#[derive(Debug)]
pub enum Factor {
    /// A tensor that ggml multiplies with.
    Dense(Weight),
    /// A matrix that the run-time hook multiplies with.
    #[cfg(feature = "hook")]
    Coded(CodedWeight),
    /// Matrices of experts that the run-time hook multiplies with.
    #[cfg(feature = "hook")]
    CodedExperts(CodedExperts),
}

/// Which experts multiply the tokens of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts per token.
    pub n_used: usize,
    /// The experts of every token, [n_used, n_tokens].
    pub ids: Vec<i32>,
}

impl Factor {
    /// Shape of the matrix, or that of each expert.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        match self {
            Self::Dense(w) => w.shape(),
            #[cfg(feature = "hook")]
            Self::Coded(w) => w.shape(),
            #[cfg(feature = "hook")]
            Self::CodedExperts(w) => w.stack().each,
        }
    }

    /// Bytes of the matrix in memory, all of which a product reads; of experts those of all.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Dense(w) => w.n_bytes(),
            #[cfg(feature = "hook")]
            Self::Coded(w) => w.n_bytes(),
            #[cfg(feature = "hook")]
            Self::CodedExperts(w) => w.n_bytes(),
        }
    }

    /// Number of experts; `None` for one matrix.
    #[must_use]
    pub fn n_experts(&self) -> Option<usize> {
        match self {
            Self::Dense(w) => w.n_experts(),
            #[cfg(feature = "hook")]
            Self::Coded(_) => None,
            #[cfg(feature = "hook")]
            Self::CodedExperts(w) => Some(w.stack().n_experts),
        }
    }
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).expect("sizes in memory are below isize::MAX")
}
