//! Finished tensors of an earlier scheme that are completed instead of being coded anew: all of it that is not in
//! codecs.

use format::{CodecError, MatrixId, MatrixShape, Sidecar, SidecarSpec};
use numerics::EncodeContext;

use crate::build::{Build, Finished};
use crate::{
    Encoded, Encoding, Error, Importance, Method, Origin, PlanItem, TensorEncoder, TensorResult,
    WorkFolder,
};

/// How files of an earlier scheme grow into ones of a method, see [`Method::growth`].
pub trait Growth {
    /// Whether a file made with the value `recorded` for the flag `name` can grow into one with `given`.
    fn may_change(&self, name: &str, recorded: &str, given: &str) -> bool;

    /// Sidecars that a finished tensor of the scheme `recorded` has; `None` if [`Self::complete`] cannot complete it.
    fn earlier_sidecars(&self, item: &PlanItem, recorded: &str) -> Option<Vec<SidecarSpec>>;

    /// Makes sidecars described by [`Self::earlier_sidecars`] those of this scheme.
    ///
    /// # Errors
    /// As [`numerics::Codec::encode`], or [`CodecError::Sidecar`] if `sidecars` cannot be completed.
    fn complete(
        &self,
        tensor: MatrixId,
        weights: &[f32],
        shape: MatrixShape,
        sidecars: Vec<Sidecar>,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError>;
}

impl dyn Method + '_ {
    /// Whether a file made with the value `recorded` for the flag `name` can grow into one with `given`.
    pub(crate) fn may_change(&self, name: &str, recorded: &str, given: &str) -> bool {
        self.growth().is_some_and(|growth| growth.may_change(name, recorded, given))
    }
}

impl Build<'_> {
    /// The tensor of `item` completed from what there is of it under the scheme `recorded`; `load` reads sidecars that
    /// are there. `None` if it must be coded anew.
    ///
    /// # Errors
    /// As `load` and [`TensorEncoder::encode`].
    pub(crate) fn grown(
        &self,
        (item, recorded): (&PlanItem, &str),
        work: &mut WorkFolder,
        load: impl FnOnce(&WorkFolder, &[SidecarSpec]) -> Result<Option<Vec<Sidecar>>, Error>,
    ) -> Result<Option<Finished>, Error> {
        let Some(growth) = self.method.growth() else { return Ok(None) };
        let Some(specs) = growth.earlier_sidecars(item, recorded) else { return Ok(None) };
        let Some(sidecars) = load(work, &specs)? else { return Ok(None) };
        self.reporter.line(&format!("{}: completed to {}", item.tensor, item.codec.scheme()));
        let encoder = self.encoder(self.calibrated());
        let (result, sidecars) = encoder.complete(item, self.importance(item), growth, sidecars)?;
        work.save(item.tensor, &result, &sidecars)?;
        Ok(Some(Finished::new(result, Origin::Completed)))
    }
}

impl TensorEncoder<'_> {
    fn complete(
        &self,
        item: &PlanItem,
        importance: Option<&Importance>,
        growth: &dyn Growth,
        sidecars: Vec<Sidecar>,
    ) -> Result<(TensorResult, Vec<Sidecar>), Error> {
        self.finish(item, importance, |Encoding { weights, context, .. }| {
            let (tensor, shape) = (item.tensor, item.shape);
            let sidecars = growth.complete(tensor, weights, shape, sidecars, context)?;
            Ok(Encoded { sidecars, shrink: None })
        })
    }
}
