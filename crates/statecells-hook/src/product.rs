//! What every scheme gives and gets: the plan of a product, and one call of it.

use std::cell::RefCell;
use std::sync::Arc;

use format::{ElementType, MatrixShape};
use statecells_kernels::{Part, Scratch, TileCache};

use crate::buffer::SharedOutput;
use crate::error::HookError;
use crate::routed::{Routed, Share};

/// The graph nodes of a product, see `statecells_plan` in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Innermost dimension of the prepared tensor; 0 if there is no such step.
    pub prepared_ne0: usize,
    /// Columns of the prepared tensor per token.
    pub prepared_columns: usize,
    /// Its element type.
    pub prepared_type: ElementType,
    /// Whether the host multiplies with `dict`.
    pub project: bool,
}

/// The checked numbers of one call: how many tokens, and which thread of how many.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub n_tokens: usize,
    pub ith: usize,
    pub nth: usize,
}

impl Call {
    /// Checks the host's numbers; besides, the numbers of inputs and outputs of the call.
    pub fn check(
        shape: MatrixShape,
        n_tokens: i64,
        ith: i32,
        nth: i32,
    ) -> Result<(Self, usize, usize), HookError> {
        let bad = HookError::Call("token or thread count out of range");
        let (n_tokens, ith, nth) =
            (usize::try_from(n_tokens), usize::try_from(ith), usize::try_from(nth));
        let (Ok(n_tokens), Ok(ith), Ok(nth)) = (n_tokens, ith, nth) else { return Err(bad) };
        let (d_in, d_out) = (shape.d_in, shape.d_out);
        match (d_in.checked_mul(n_tokens), d_out.checked_mul(n_tokens)) {
            (Some(n_in), Some(n_out)) if ith < nth => {
                Ok((Self { n_tokens, ith, nth }, n_in, n_out))
            }
            _ => Err(bad),
        }
    }
}

/// A matrix of some scheme, checked and immutable. Any number of threads may use it at once.
pub trait Product: std::fmt::Debug + Send + Sync {
    /// This thread's share of the step before projection or look-up.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens].
    fn prepare(&self, x: &[f32], call: Call, out: &SharedOutput<u8>) -> Result<(), HookError>;

    /// This thread's share of the product.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens], `prepared`: as the plan says, `out`: [d_out, n_tokens].
    fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError>;

    /// The bytes that decide, besides the input, what is prepared; `None` if others decide too.
    fn dictionary(&self) -> Option<&[u8]> {
        None
    }

    /// Keeps decoded tiles in `_cache`, if there are such.
    fn keep_tiles(&mut self, _cache: &Arc<TileCache>) {}
}

/// Matrices of experts of some scheme, checked and immutable. Any number of threads may use them at once.
pub trait ExpertProduct: std::fmt::Debug + Send + Sync {
    /// This thread's share of what all experts need of the inputs.
    fn prepare(
        &self,
        routed: &Routed<'_>,
        part: Part,
        out: &SharedOutput<u8>,
    ) -> Result<(), HookError>;

    /// This thread's share of the product.
    ///
    /// # Shapes
    /// `prepared`: as the plan says, `out`: [d_out, n_used, n_tokens].
    fn apply(
        &self,
        routed: &Routed<'_>,
        prepared: &[u8],
        share: Share<'_>,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError>;

    /// The bytes that decide, besides the input, what is prepared.
    fn dictionary(&self) -> &[u8];

    /// Keeps decoded tiles in `cache`.
    fn keep_tiles(&mut self, cache: &Arc<TileCache>);
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Runs `body` with the working memory of this thread of the host's pool.
pub fn with_scratch<T>(body: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(body)
}
