//! The inputs of a model's FFN, and what is known about one of them.

use crate::{Experts, Samples, SecondMoment};

/// What codecs may fit to.
#[derive(Clone, Debug, PartialEq)]
pub enum Fitted {
    /// The second moment over all fitted tokens.
    Moment(SecondMoment),
    /// Samples of them, where the moment would be too large.
    Samples(Samples),
}

/// What is known about one FFN input.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibratedInput {
    /// From the tokens to fit to.
    pub fitted: Fitted,
    /// Second moment over the held-out tokens, where it is not too large. Only to measure with.
    pub holdout_moment: Option<SecondMoment>,
    /// Single held-out inputs. Only to measure with.
    pub holdout: Samples,
    /// From the tokens to fit to, of each expert those that it has seen.
    pub experts: Experts,
}

impl CalibratedInput {
    /// Length of an input.
    #[must_use]
    pub fn d(&self) -> usize {
        self.holdout.d()
    }

    /// Mean of x x^T over the fitted tokens, [d, d]; `None` where only samples are kept.
    #[must_use]
    pub fn second_moment(&self) -> Option<Vec<f32>> {
        match &self.fitted {
            Fitted::Moment(moment) => Some(moment.mean()),
            Fitted::Samples(_) => None,
        }
    }

    /// Sampled inputs to fit to; `None` where the moment is kept.
    #[must_use]
    pub fn fitted_samples(&self) -> Option<&Samples> {
        match &self.fitted {
            Fitted::Samples(samples) => Some(samples),
            Fitted::Moment(_) => None,
        }
    }

    /// Mean of x_i^2 over what codecs may fit to, `[d]`.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f32> {
        match &self.fitted {
            Fitted::Moment(moment) => moment.mean_squares(),
            Fitted::Samples(samples) => {
                let mut sums = vec![0f64; samples.d()];
                for x in samples.to_f32().chunks(samples.d()) {
                    sums.iter_mut().zip(x).for_each(|(s, &v)| *s += f64::from(v) * f64::from(v));
                }
                sums.iter().map(|s| (s / samples.len().max(1) as f64) as f32).collect()
            }
        }
    }

    /// Mean of x x^T over the held-out tokens, [d, d]; `None` where only samples are kept.
    #[must_use]
    pub fn holdout_moment(&self) -> Option<Vec<f32>> {
        self.holdout_moment.as_ref().map(SecondMoment::mean)
    }

    /// Held-out inputs, [d, n].
    #[must_use]
    pub fn holdout_samples(&self) -> Vec<f32> {
        self.holdout.to_f32()
    }
}
