//! The matrices of all experts of a layer, ready to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use format::ExpertStack;
use statecells_kernels::{Part, TileCache};

use crate::buffer::SharedOutput;
use crate::error::HookError;
use crate::product::ExpertProduct;
use crate::routed::Routed;
use crate::schemes;
use crate::sidecars::Sidecars;

/// Thread `ith` of `nth`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread {
    pub(crate) ith: usize,
    pub(crate) nth: usize,
}

impl Thread {
    /// Checks the host's numbers.
    pub(crate) fn check(ith: i32, nth: i32) -> Result<Self, HookError> {
        match (usize::try_from(ith), usize::try_from(nth)) {
            (Ok(ith), Ok(nth)) if ith < nth => Ok(Self { ith, nth }),
            _ => Err(HookError::Call("thread out of range")),
        }
    }
}

/// Coded matrices of experts, checked and immutable.
#[derive(Debug)]
pub struct Experts {
    stack: ExpertStack,
    product: Box<dyn ExpertProduct>,
    /// As in [`crate::Matrix`].
    broken: AtomicBool,
}

impl Experts {
    /// Checks everything, data included.
    pub(crate) fn new(
        scheme: &str,
        stack: ExpertStack,
        sidecars: &Sidecars,
    ) -> Result<Self, HookError> {
        let product = schemes::open_experts(scheme, stack, sidecars)?;
        Ok(Self { stack, product, broken: AtomicBool::new(false) })
    }

    /// Shapes.
    #[must_use]
    pub fn stack(&self) -> ExpertStack {
        self.stack
    }

    /// Keeps decoded tiles in `cache`.
    pub(crate) fn keep_tiles(&mut self, cache: &Arc<TileCache>) {
        self.product.keep_tiles(cache);
    }

    /// Whether what one of them prepares does for the other.
    pub(crate) fn prepares_like(&self, other: &Self) -> bool {
        self.stack.each.d_in == other.stack.each.d_in
            && self.stack.n_experts == other.stack.n_experts
            && self.product.dictionary() == other.product.dictionary()
    }

    pub(crate) fn prepare(
        &self,
        routed: &Routed<'_>,
        thread: Thread,
        out: &SharedOutput<u8>,
    ) -> Result<(), HookError> {
        self.product.prepare(routed, Part::new(thread.ith, thread.nth)?, out)
    }

    /// No product of these matrices counts any more.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn apply(
        &self,
        routed: &Routed<'_>,
        prepared: &[u8],
        thread: Thread,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(HookError::Call("an earlier step has failed"));
        }
        self.product.apply(routed, prepared, routed.share(thread.ith, thread.nth), out)
    }
}
