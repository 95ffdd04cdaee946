//! Where the activations that a tensor is fitted to come from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use calibration::{CalibratedInput, Calibration};
use format::{InputId, MatrixId};

use crate::Error;

/// Activations of FFN inputs.
pub trait Inputs {
    /// What is known about `input`.
    ///
    /// # Errors
    /// [`Error::Calibration`] if nothing is, or if it cannot be read.
    fn input(&self, input: InputId) -> Result<Cow<'_, CalibratedInput>, Error>;

    /// The matrix to code in place of the weights of `tensor`, [d_in, d_out], where these inputs are not the ones
    /// that the weights were made for.
    fn target(&self, _tensor: MatrixId) -> Option<&[f32]> {
        None
    }
}

impl Inputs for Calibration {
    fn input(&self, input: InputId) -> Result<Cow<'_, CalibratedInput>, Error> {
        Ok(Cow::Owned(self.input(input)?))
    }
}

/// Activations of some layers as earlier errors have changed them, in memory.
#[derive(Debug, Default)]
pub struct Recaptured {
    /// What the matrices see.
    pub inputs: BTreeMap<InputId, CalibratedInput>,
    /// The matrices that make up for the errors before them, as far as they can; none where there are no errors.
    pub targets: BTreeMap<MatrixId, Vec<f32>>,
    /// How far the hidden states are from those of the source model, as a share of their norm; 0 where they are as they
    /// were.
    pub drift: f64,
}

impl Inputs for Recaptured {
    fn input(&self, input: InputId) -> Result<Cow<'_, CalibratedInput>, Error> {
        let found = self.inputs.get(&input);
        Ok(Cow::Borrowed(found.expect("every input of the group was watched")))
    }

    fn target(&self, tensor: MatrixId) -> Option<&[f32]> {
        self.targets.get(&tensor).map(Vec::as_slice)
    }
}

/// The dense form of a matrix in its place in the compressed model; `None` where it is that of the source.
pub type Decoded<'a> = dyn FnMut(MatrixId) -> Result<Option<Vec<f32>>, Error> + 'a;

/// Runs the model with what is coded so far, to see what the next matrices will really see.
pub trait Recapture {
    /// Number of the group that `tensor` belongs to: tensors of a group are fitted to one recapture. It never falls from
    /// one tensor of a plan to the next.
    fn group(&self, tensor: MatrixId) -> usize;

    /// The inputs of `tensors`, which are a group, where all before them are as `decoded` has them. Called with
    /// ascending groups.
    ///
    /// # Errors
    /// [`Error::Program`] if the model cannot be run, [`Error::Stopped`].
    fn inputs(
        &mut self,
        tensors: &[MatrixId],
        decoded: &mut Decoded<'_>,
    ) -> Result<Recaptured, Error>;
}
