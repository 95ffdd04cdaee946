//! What a build program brings along: its codec for each tensor.

use std::collections::BTreeMap;

use calibration::{CalibratedInput, Calibration};
use codec::{Codec, EncodeContext};
use format::{CodecError, MatrixId, MatrixShape, Sidecar, SidecarSpec};
use ggml::gguf::Value;

use crate::{
    Allocation, Error, Interrupt, PlanItem, Recapture, Reporter, Settings, Source, Survey, Tunable,
    Tuned,
};

/// A matrix to be coded, and what is known about it.
pub struct Encoding<'a> {
    /// What was planned for it.
    pub item: &'a PlanItem,
    /// The weights, [d_in, d_out].
    pub weights: &'a [f32],
    /// Its inputs on real text, if there is a calibration. The hold-out must not be fitted to; single
    /// parameters may be chosen by it.
    pub calibrated: Option<&'a CalibratedInput>,
    /// Everything else; the importance is the calibration's where there is one.
    pub context: &'a EncodeContext<'a>,
}

/// A coded matrix.
#[derive(Debug)]
pub struct Encoded {
    /// The sidecars that were planned.
    pub sidecars: Vec<Sidecar>,
    /// Shrinkage of the second moment that was chosen for this matrix.
    pub shrink: Option<f64>,
}

/// A way to code FFN matrices, with its parameters.
pub trait Method: Sync {
    /// Name of the scheme that was asked for, recorded in the file.
    fn scheme(&self) -> &'static str;

    /// The codec for `tensor`, with the parameters for its role.
    fn codec(&self, tensor: MatrixId) -> Box<dyn Codec>;

    /// Parameters for a matrix of `shape`, by the names that reports use (`M`, `k`).
    fn settings(&self, tensor: MatrixId, shape: MatrixShape) -> Settings;

    /// Whether [`Self::allocate`] must be asked before a plan is final.
    fn has_budget(&self) -> bool {
        false
    }

    /// Shares out a budget among the tensors of a provisional plan. The same for the same survey.
    ///
    /// # Errors
    /// [`Error`] if the budget cannot be kept.
    ///
    /// # Panics
    /// If there is no budget.
    fn allocate(&self, _survey: &Survey<'_>) -> Result<Allocation, Error> {
        unreachable!("{} has no budget to share out", self.scheme())
    }

    /// The method with what each tensor got.
    ///
    /// # Panics
    /// If there is no budget.
    fn with_allocation(&self, _allocation: &Allocation) -> Box<dyn Method> {
        unreachable!("{} has no budget to share out", self.scheme())
    }

    /// What would make the codes of `items` smaller than they are in the source, for a message: flags, and the value that
    /// is small enough where there is one.
    fn smaller(&self, items: &[&PlanItem]) -> String;

    /// Learns and encodes a matrix.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    fn encode(&self, encoding: &Encoding<'_>) -> Result<Encoded, CodecError> {
        let Encoding { item, weights, context, .. } = encoding;
        let sidecars = item.codec.encode(weights, item.shape, context)?;
        Ok(Encoded { sidecars, shrink: None })
    }

    /// Flags with their effective values: everything that decides the bytes of the output, except the
    /// selection of tensors and what [`crate::BuildOptions`] holds.
    fn arguments(&self) -> BTreeMap<String, String>;

    /// Whether a file made with the value `recorded` for the flag `name` can grow into one with `given`.
    fn may_change(&self, _name: &str, _recorded: &str, _given: &str) -> bool {
        false
    }

    /// Sidecars that a finished tensor of the scheme `recorded` has, if [`Self::complete`] can complete it.
    fn earlier_sidecars(&self, _item: &PlanItem, _recorded: &str) -> Option<Vec<SidecarSpec>> {
        None
    }

    /// Makes sidecars described by [`Self::earlier_sidecars`] those of this scheme.
    ///
    /// # Errors
    /// As [`Codec::encode`], or [`CodecError::Sidecar`] if `sidecars` cannot be completed.
    ///
    /// # Panics
    /// If there are no such sidecars.
    fn complete(
        &self,
        tensor: MatrixId,
        _weights: &[f32],
        _shape: MatrixShape,
        _sidecars: Vec<Sidecar>,
        _context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        unreachable!("{tensor}: no other scheme grows into {}", self.scheme())
    }

    /// Checks that everything that follows the coding of single tensors can be done for `tensors` of `source`, as far
    /// as that can be known without reading weights: nothing of it must fail after hours of work.
    ///
    /// # Errors
    /// [`Error::Method`] with the flag that asks for what cannot be done.
    fn check(
        &self,
        _source: &Source,
        _calibration: Option<&Calibration>,
        _tensors: &[MatrixId],
    ) -> Result<(), Error> {
        Ok(())
    }

    /// What of this machine decides about the bytes besides its instructions; `None` for nothing.
    fn machine(&self) -> Option<String> {
        None
    }

    /// Whether `flag` decides about nothing but [`Self::tune`]: coded tensors are the same whatever its value.
    fn is_later_step(&self, _flag: &str) -> bool {
        false
    }

    /// Whether what a tensor becomes depends on those before it in a plan.
    fn depends_on_earlier(&self) -> bool {
        false
    }

    /// Whether [`Self::recapture`] takes the place of all activations of a calibration, so that its text is enough.
    fn needs_text_only(&self) -> bool {
        false
    }

    /// How to see what later layers see while earlier ones are coded; `None` to fit every layer to the
    /// calibration as it is.
    ///
    /// # Errors
    /// [`Error::Method`] if the model or the calibration does not allow it.
    fn recapture<'a>(
        &'a self,
        _source: &'a Source,
        _calibration: &'a Calibration,
        _watch: (&'a Reporter, &'a Interrupt),
    ) -> Result<Option<Box<dyn Recapture + 'a>>, Error> {
        Ok(None)
    }

    /// Whether [`Self::tune`] follows once everything is coded.
    fn tunes(&self) -> bool {
        false
    }

    /// Tunes all coded tensors together; they come back with the same types and shapes.
    ///
    /// # Errors
    /// [`Error::Method`] if the model or the calibration does not allow it, [`Error::Stopped`].
    ///
    /// # Panics
    /// If the method does not tune.
    fn tune(
        &self,
        _source: &Source,
        _calibration: &Calibration,
        _tensors: BTreeMap<MatrixId, Tunable>,
        _watch: (&Reporter, &Interrupt),
    ) -> Result<Tuned, Error> {
        unreachable!("{} does not tune", self.scheme())
    }

    /// Further metadata for a file with these coded tensors, in the order in which it is written.
    fn metadata(&self, _coded: &[&PlanItem]) -> Vec<(String, Value)> {
        Vec::new()
    }
}
