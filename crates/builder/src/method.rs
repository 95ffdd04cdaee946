//! What a build program brings along: its codec for each tensor.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::{CalibratedInput, Calibration};
use format::{CodecError, Matrix, MatrixId, MatrixShape, Sidecar};
use ggml::gguf::Value;
use inspect::Settings;
use numerics::{Codec, EncodeContext};
use program::{Interrupt, Reporter};

use crate::{
    Allocation, Error, Growth, Importance, PlanItem, Recapture, Source, Stage, Survey, Tunable,
    Tuned,
};

/// A matrix to be coded, and what is known about it.
pub struct Encoding<'a> {
    /// What was planned for it.
    pub item: &'a PlanItem,
    /// The weights, [d_in, d_out].
    pub weights: &'a [f32],
    /// The model, for what matrices have in common.
    pub source: &'a Source,
    /// Its inputs on real text, if there is a calibration. The hold-out must not be fitted to; single
    /// parameters may be chosen by it.
    pub calibrated: Option<&'a CalibratedInput>,
    /// The importance of its inputs, that of single experts included, if it is known.
    pub importance: Option<&'a Importance>,
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

/// A way to code matrices, with its parameters.
///
/// What not every method can do is a capability of its own: `None`, the default, says that the method has not got it or
/// that nobody asked for it.
pub trait Method: Sync {
    /// Name of the scheme that was asked for, recorded in the file.
    fn scheme(&self) -> &'static str;

    /// The codec for `matrix`, with the parameters for its role. Matrices of experts come only where [`Self::codes_experts`].
    fn codec(&self, matrix: &Matrix) -> Box<dyn Codec>;

    /// Whether matrices of experts can be coded.
    fn codes_experts(&self) -> bool {
        false
    }

    /// Parameters for a matrix of `shape`, by the names that reports use (`M`, `k`).
    fn settings(&self, tensor: MatrixId, shape: MatrixShape) -> Settings;

    /// Flags with their effective values: everything that decides the bytes of the output, except the
    /// selection of tensors and what [`crate::BuildOptions`] holds.
    fn arguments(&self) -> BTreeMap<String, String>;

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

    /// Further metadata for a file with these coded tensors, in the order in which it is written.
    fn metadata(&self, _coded: &[&PlanItem]) -> Vec<(String, Value)> {
        Vec::new()
    }

    /// What of this machine decides about the bytes besides its instructions; `None` for nothing.
    fn machine(&self) -> Option<String> {
        None
    }

    /// The first stage that `flag` decides about, if that comes after coding: coded tensors are the same whatever its
    /// value. Asked also where nothing is tuned, because an earlier run may have been.
    fn later_stage(&self, _flag: &str) -> Option<Stage> {
        None
    }

    /// A budget to be shared out before a plan is final.
    fn budget(&self) -> Option<Box<dyn SharedBudget + '_>> {
        None
    }

    /// Files of an earlier scheme that grow into ones of this method.
    fn growth(&self) -> Option<&dyn Growth> {
        None
    }

    /// Fitting every tensor to what it sees behind those that are coded already.
    fn sequence(&self) -> Option<Box<dyn Sequence + '_>> {
        None
    }

    /// Steps of tuning all coded tensors, once everything is coded, in their order.
    fn tunings(&self) -> Vec<Box<dyn Tuning + '_>> {
        Vec::new()
    }
}

/// Bytes that are shared out among all tensors, see [`Method::budget`].
pub trait SharedBudget {
    /// Shares the budget out among the tensors of a provisional plan. The same for the same survey.
    ///
    /// # Errors
    /// [`Error`] if the budget cannot be kept.
    fn allocate(&self, survey: &Survey<'_>) -> Result<Allocation, Error>;

    /// The method with what each tensor got.
    fn with_allocation(&self, allocation: &Allocation) -> Box<dyn Method>;
}

/// Running the model as coded so far, see [`Method::sequence`].
pub trait Sequence {
    /// Checks what can be known without reading weights, for `tensors` of `source`: nothing of it must fail after hours
    /// of work. The calibration may be still to be made.
    ///
    /// # Errors
    /// [`Error::Program`] with the flag that asks for what cannot be done.
    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error>;

    /// Whether what is seen takes the place of all activations of a calibration, so that its text is enough.
    fn needs_text_only(&self) -> bool;

    /// Begins before the first layer. Files that nobody else sees may be kept in `folder`.
    ///
    /// # Errors
    /// [`Error::Program`] if the model or the calibration does not allow it.
    fn recapture<'a>(
        &self,
        source: &'a Source,
        calibration: &'a Calibration,
        folder: &Path,
        watch: (&'a Reporter, &'a Interrupt),
    ) -> Result<Box<dyn Recapture + 'a>, Error>;
}

/// Tuning the finished codes, see [`Method::tunings`].
pub trait Tuning {
    /// What tensors are of afterwards.
    fn stage(&self) -> Stage;

    /// As [`Sequence::check`].
    ///
    /// # Errors
    /// [`Error::Program`] with the flag that asks for what cannot be done.
    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error>;

    /// Tunes all coded tensors; they come back with the same types and shapes. Files that nobody else sees may be kept in
    /// the folder.
    ///
    /// # Errors
    /// [`Error::Program`] if the model or the calibration does not allow it, [`Error::Stopped`].
    fn tune(
        &self,
        source: &Source,
        calibration: &Calibration,
        tensors: (BTreeMap<MatrixId, Tunable>, &Path),
        watch: (&Reporter, &Interrupt),
    ) -> Result<Tuned, Error>;
}
