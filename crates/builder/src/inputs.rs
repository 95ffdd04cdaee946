//! Where the activations that a tensor is fitted to come from.

use std::collections::BTreeMap;
use std::ops::Range;

use calibration::{CalibratedInput, Calibration, FfnInput};
use codec::FfnTensor;

use crate::Error;

/// Activations of FFN inputs.
pub trait Inputs {
    /// What is known about the input of `tensor`.
    ///
    /// # Errors
    /// [`Error::Calibration`] if nothing is, or if it cannot be read.
    fn input(&self, tensor: FfnTensor) -> Result<CalibratedInput, Error>;
}

impl Inputs for Calibration {
    fn input(&self, tensor: FfnTensor) -> Result<CalibratedInput, Error> {
        Ok(self.input(tensor)?)
    }
}

/// Activations of some layers, in memory.
pub type Recaptured = BTreeMap<FfnInput, CalibratedInput>;

impl Inputs for Recaptured {
    fn input(&self, tensor: FfnTensor) -> Result<CalibratedInput, Error> {
        let found = self.get(&FfnInput::of(tensor));
        Ok(found.expect("every layer of the group was watched").clone())
    }
}

/// The dense form of a matrix in its place in the compressed model; `None` where it is that of the source.
pub type Decoded<'a> = dyn FnMut(FfnTensor) -> Result<Option<Vec<f32>>, Error> + 'a;

/// Runs the model with what is coded so far, to see what the next layers will really see.
pub trait Recapture {
    /// Layers between two recaptures.
    fn every(&self) -> usize;

    /// The inputs of `layers`, where all layers before them are as `decoded` has them. Called with ascending
    /// ranges.
    ///
    /// # Errors
    /// [`Error::Method`] if the model cannot be run, [`Error::Stopped`].
    fn inputs(
        &mut self,
        layers: Range<usize>,
        decoded: &mut Decoded<'_>,
    ) -> Result<Recaptured, Error>;
}
