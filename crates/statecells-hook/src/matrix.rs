//! A coded matrix that is ready to run, whatever its scheme.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use format::MatrixShape;
use statecells_kernels::TileCache;

use crate::buffer::SharedOutput;
use crate::check::Share;
use crate::error::HookError;
use crate::product::{Call, Product};
use crate::schemes;
use crate::sidecars::Sidecars;

/// A coded matrix, checked and immutable.
#[derive(Debug)]
pub struct Matrix {
    shape: MatrixShape,
    product: Box<dyn Product>,
    /// A share of a prepare step failed: what it left in the host's buffer would make plausible wrong numbers, so
    /// there are no products any more. The host has a barrier between the steps, hence no ordering.
    broken: AtomicBool,
}

impl Matrix {
    /// Checks everything, data included.
    pub(crate) fn new(
        scheme: &str,
        shape: MatrixShape,
        sidecars: &Sidecars,
    ) -> Result<Self, HookError> {
        Ok(Self::of(shape, schemes::open(scheme, shape, sidecars)?))
    }

    fn of(shape: MatrixShape, product: Box<dyn Product>) -> Self {
        Self { shape, product, broken: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(crate) fn with_defect(shape: MatrixShape) -> Self {
        Self::of(shape, Box::new(Defect))
    }

    /// Shape of the dense matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Keeps decoded tiles in `cache`, if the scheme has any.
    pub(crate) fn keep_tiles(&mut self, cache: &Arc<TileCache>) {
        self.product.keep_tiles(cache);
    }

    /// Whether what one of them prepares does for the other.
    pub(crate) fn prepares_like(&self, other: &Self) -> bool {
        let dictionary = self.product.dictionary();
        self.shape.d_in == other.shape.d_in
            && dictionary.is_some()
            && dictionary == other.product.dictionary()
    }

    /// This thread's share of the step before projection or look-up.
    pub(crate) fn prepare(
        &self,
        x: &[f32],
        call: Call,
        out: &SharedOutput<u8>,
    ) -> Result<(), HookError> {
        self.product.prepare(x, call, out)
    }

    /// No product of this matrix counts any more.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// This thread's share of the product.
    pub(crate) fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(HookError::Call("an earlier step has failed"));
        }
        self.product.apply(x, prepared, call, out)
    }

    /// Makes this thread's share of the product NaN. The others fill or compute theirs at the same time.
    pub(crate) fn void(&self, call: Call, out: &SharedOutput<f32>) -> Result<(), HookError> {
        for part in Share::new(self.shape, call)?.outputs() {
            // SAFETY: the shares of two threads have no output in common.
            unsafe { out.part(part)? }.fill(f32::NAN);
        }
        Ok(())
    }
}

/// A defect in each step, to see what becomes of it.
#[cfg(test)]
#[derive(Debug)]
struct Defect;

#[cfg(test)]
impl Product for Defect {
    fn prepare(&self, _: &[f32], _: Call, _: &SharedOutput<u8>) -> Result<(), HookError> {
        panic!("a defect")
    }

    fn apply(&self, _: &[f32], _: &[u8], _: Call, _: &SharedOutput<f32>) -> Result<(), HookError> {
        panic!("a defect")
    }
}
