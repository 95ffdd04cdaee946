//! A coded matrix that is ready to run, whatever its scheme.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use format::{CodecError, ElementType, MatrixShape, Scheme, Uncodable};
use statecells_kernels::{KernelError, Scratch};

use crate::buffer::SharedOutput;
use crate::check::Share;
use crate::global::GlobalMatrix;
use crate::sections::SectionsMatrix;
use crate::seeddelta::{self, SeedDeltaMatrix};
use crate::sidecars::Sidecars;

/// Why the hook refuses a matrix or a call; one line, without the tensor's name, which the host adds.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum HookError {
    /// The file's sidecars are not what the format says.
    #[error("sidecar '{suffix}': {reason}: the file is damaged or was made by another version")]
    Sidecar {
        /// Last part of the tensor's name.
        suffix: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The scheme is unknown here.
    #[error("scheme '{0}' is unknown to this version: update llama.cpp's StateCells library")]
    Scheme(String),
    /// Two sidecars do not agree, or their content is out of range.
    #[error("{0}: the file is damaged or was made by another version")]
    Kernel(#[from] KernelError),
    /// The model has no place for a coded weight there.
    #[error("{0}")]
    Uncodable(#[from] Uncodable),
    /// An environment variable asks for what this machine has not.
    #[error("{0}")]
    Environment(String),
    /// The host broke the contract of `statecells.h`.
    #[error("statecells: {0}")]
    Call(&'static str),
    /// A defect of this library.
    #[error("statecells: internal error (panic caught)")]
    Panic,
}

impl HookError {
    /// An error about one sidecar.
    pub fn sidecar(suffix: &'static str, reason: impl Into<String>) -> Self {
        Self::Sidecar { suffix, reason: reason.into() }
    }

    /// What a codec says about sidecars.
    pub fn from_codec(error: CodecError) -> Self {
        match error {
            CodecError::Sidecar { suffix, reason } => Self::Sidecar { suffix, reason },
            other => Self::Sidecar { suffix: "base", reason: other.to_string() },
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Runs `body` with the working memory of this thread of the host's pool.
pub(crate) fn with_scratch<T>(body: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(body)
}

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

impl Plan {
    /// The plan for a matrix, from types and shapes alone.
    pub fn of(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError> {
        if scheme == seeddelta::SCHEME {
            return SeedDeltaMatrix::plan(shape, sidecars);
        }
        match parse(scheme)? {
            s if s.is_global() => GlobalMatrix::plan(s, shape, sidecars),
            _ => SectionsMatrix::plan(shape, sidecars),
        }
    }
}

fn parse(scheme: &str) -> Result<Scheme, HookError> {
    scheme.parse().map_err(|_| HookError::Scheme(scheme.chars().take(40).collect()))
}

/// The checked numbers of one call: how many tokens, and which thread of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub n_tokens: usize,
    pub ith: usize,
    pub nth: usize,
}

/// A coded matrix, checked and immutable.
#[derive(Debug)]
pub struct Matrix {
    shape: MatrixShape,
    kind: Kind,
    /// A share of a prepare step failed: what it left in the host's buffer would make plausible wrong numbers, so
    /// there are no products any more. The host has a barrier between the steps, hence no ordering.
    broken: AtomicBool,
}

#[derive(Debug)]
enum Kind {
    Global(GlobalMatrix),
    Sections(Box<SectionsMatrix>),
    SeedDelta(Box<SeedDeltaMatrix>),
    /// A defect in each step, to see what becomes of it.
    #[cfg(test)]
    Defect,
}

impl Matrix {
    /// Checks everything, data included.
    pub(crate) fn new(
        scheme: &str,
        shape: MatrixShape,
        sidecars: &Sidecars,
    ) -> Result<Self, HookError> {
        if scheme == seeddelta::SCHEME {
            let matrix = Box::new(SeedDeltaMatrix::new(shape, sidecars)?);
            return Ok(Self::of(shape, Kind::SeedDelta(matrix)));
        }
        let kind = match parse(scheme)? {
            s if s.is_global() => Kind::Global(GlobalMatrix::new(s, shape, sidecars)?),
            _ => Kind::Sections(Box::new(SectionsMatrix::new(shape, sidecars)?)),
        };
        Ok(Self::of(shape, kind))
    }

    fn of(shape: MatrixShape, kind: Kind) -> Self {
        Self { shape, kind, broken: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(crate) fn with_defect(shape: MatrixShape) -> Self {
        Self::of(shape, Kind::Defect)
    }

    /// Shape of the dense matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// This thread's share of the step before projection or look-up.
    pub(crate) fn prepare(
        &self,
        x: &[f32],
        call: Call,
        out: &SharedOutput<u8>,
    ) -> Result<(), HookError> {
        match &self.kind {
            Kind::Global(m) => m.prepare(x, call, out),
            Kind::Sections(m) => m.prepare(x, call, out),
            Kind::SeedDelta(m) => m.prepare(x, call, out),
            #[cfg(test)]
            Kind::Defect => panic!("a defect"),
        }
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
        match &self.kind {
            Kind::Global(m) => m.apply(x, prepared, call, out),
            Kind::Sections(m) => m.apply(x, prepared, call, out),
            Kind::SeedDelta(m) => m.apply(x, prepared, call, out),
            #[cfg(test)]
            Kind::Defect => panic!("a defect"),
        }
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
