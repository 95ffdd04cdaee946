//! What a code does to a matrix's outputs on the activations of a calibration.

use calibration::{CalibratedInput, SecondMoment};
use format::MatrixShape;
use numerics::MatMul;
use numerics::functional::{functional_error, token_error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A tensor is flagged as overfitted if its error on held-out activations is more than so many times that
/// on the fitted ones, both as ratios of sums.
pub const OVERFITTED: f64 = 1.5;

/// Relative squared errors of a matrix's outputs, E = W - W^.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FunctionalErrors {
    /// sum |E x|^2 / sum |W x|^2 over the activations that were fitted to.
    pub fitted: f64,
    /// The same over the held-out ones.
    pub held_out: f64,
    /// Mean over held-out activations of |E x|^2 / |W x|^2.
    pub held_out_tokens: f64,
}

/// All that is known about one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionalMetrics {
    /// The code in the file.
    pub coded: FunctionalErrors,
    /// The same parameters, fitted to the weights only (`--eval-plain`).
    pub plain: Option<FunctionalErrors>,
    /// Shrinkage of the second moment, where it was used and is known.
    #[serde(with = "exact")]
    pub shrink: Option<f64>,
}

impl FunctionalErrors {
    /// Measures `error` = W - W^ against `weights` = W.
    ///
    /// # Shapes
    /// `error`, `weights`: [d_in, d_out].
    #[must_use]
    pub fn measure(
        error: &[f32],
        weights: &[f32],
        shape: MatrixShape,
        input: &CalibratedInput,
        mul_mat: &dyn MatMul,
    ) -> Self {
        let by_moment = |moment: &SecondMoment| {
            functional_error(error, weights, shape, &moment.mean(), mul_mat).ratio()
        };
        let by_token = |samples: &[f32]| token_error(error, weights, shape, samples, mul_mat);
        let tokens = by_token(&input.holdout_samples());
        let fitted = match &input.fitted {
            calibration::Fitted::Moment(moment) => by_moment(moment),
            calibration::Fitted::Samples(samples) => by_token(&samples.to_f32()).ratio_of_sums,
        };
        let held_out = input.holdout_moment.as_ref().map_or(tokens.ratio_of_sums, by_moment);
        Self { fitted, held_out, held_out_tokens: tokens.mean }
    }

    /// Whether the held-out error is far above the fitted one, see [`OVERFITTED`].
    #[must_use]
    pub fn is_overfitted(&self) -> bool {
        self.held_out > OVERFITTED * self.fitted
    }
}

impl Serialize for FunctionalErrors {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        [self.fitted, self.held_out, self.held_out_tokens].map(f64::to_bits).serialize(s)
    }
}

impl<'de> Deserialize<'de> for FunctionalErrors {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let [fitted, held_out, held_out_tokens] = <[u64; 3]>::deserialize(d)?.map(f64::from_bits);
        Ok(Self { fitted, held_out, held_out_tokens })
    }
}

/// Floats as their bits: JSON has no infinity and rounds, but a resumed build must report what an
/// uninterrupted one does.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde prescribes the signature")]
    pub(super) fn serialize<S: Serializer>(v: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        v.map(f64::to_bits).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(f64::from_bits))
    }
}

#[cfg(test)]
mod tests {
    use calibration::{Experts, Fitted, MomentScratch, Samples};
    use numerics::ReferenceMatMul;

    use super::*;

    const SHAPE: MatrixShape = MatrixShape { d_in: 2, d_out: 2 };

    fn input(fitted: &[f32], held_out: &[f32], with_moments: bool) -> CalibratedInput {
        let samples = |rows: &[f32]| {
            let mut samples = Samples::new(2);
            rows.chunks(2).for_each(|x| samples.push(x));
            samples
        };
        let moment = |rows: &[f32]| {
            let mut moment = SecondMoment::new(2);
            moment.add(rows, &ReferenceMatMul, &mut MomentScratch::default());
            moment
        };
        CalibratedInput {
            experts: Experts::Unknown,
            fitted: if with_moments {
                Fitted::Moment(moment(fitted))
            } else {
                Fitted::Samples(samples(fitted))
            },
            holdout_moment: with_moments.then(|| moment(held_out)),
            holdout: samples(held_out),
        }
    }

    #[test]
    fn fitted_and_held_out_are_measured_apart_by_moments_and_by_samples() {
        // W = identity; all of input 1 is lost
        let (weights, error) = ([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]);
        let (fitted, held_out) = ([3.0, 1.0, 1.0, 0.0], [1.0, 1.0, 7.0, 1.0]);
        for with_moments in [true, false] {
            let input = input(&fitted, &held_out, with_moments);
            let e = FunctionalErrors::measure(&error, &weights, SHAPE, &input, &ReferenceMatMul);
            assert!((e.fitted - 1.0 / 11.0).abs() < 1e-6, "{e:?}");
            assert!((e.held_out - 2.0 / 52.0).abs() < 1e-6, "{e:?}");
            assert!((e.held_out_tokens - 0.26).abs() < 1e-6, "{e:?}");
        }
    }

    #[test]
    fn far_above_is_more_than_one_and_a_half_times() {
        let errors = |fitted, held_out| FunctionalErrors { fitted, held_out, held_out_tokens: 0.0 };
        assert!(errors(0.1, 0.151).is_overfitted());
        assert!(!errors(0.1, 0.149).is_overfitted() && !errors(0.0, 0.0).is_overfitted());
    }

    #[test]
    fn checkpoints_keep_every_bit() {
        let coded =
            FunctionalErrors { fitted: 0.1, held_out: f64::INFINITY, held_out_tokens: 1e-300 };
        let metrics = FunctionalMetrics { coded, plain: Some(coded), shrink: Some(0.1 + 0.2) };
        let text = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<FunctionalMetrics>(&text).unwrap(), metrics);
    }
}
