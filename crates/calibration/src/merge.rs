//! A calibration that grows: what was seen on two texts put together.

use crate::{CalibratedInput, Fitted, Samples, stratified};

/// Samples of two texts that stand for them by their lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Tokens seen before.
    pub n_before: u64,
    /// Tokens that are added.
    pub n_added: u64,
    /// Samples kept of all, at most.
    pub limit: u64,
}

impl Share {
    /// Samples to take of the tokens that are added.
    #[must_use]
    pub fn of_added(self) -> u64 {
        let total = u128::from(self.n_before) + u128::from(self.n_added);
        let share = u128::from(self.limit) * u128::from(self.n_added) / total.max(1);
        (share as u64).clamp(u64::from(self.n_added > 0), self.limit.max(1))
    }

    /// Samples that stay of the tokens seen before.
    fn of_before(self) -> u64 {
        self.limit.saturating_sub(self.of_added())
    }
}

impl CalibratedInput {
    /// What was seen of an input in `self`, and in `added` afterwards; `fitted` and `held_out` say how many samples stay, and
    /// `seed` which. `None` if one holds a moment and the other samples, or the inputs differ in length.
    #[must_use]
    pub fn merged(
        mut self,
        added: &Self,
        (fitted, held_out): (Share, Share),
        seed: u64,
    ) -> Option<Self> {
        if self.d() != added.d() || self.holdout_moment.is_some() != added.holdout_moment.is_some()
        {
            return None;
        }
        match (&mut self.fitted, &added.fitted) {
            (Fitted::Moment(moment), Fitted::Moment(more)) => moment.merge(more),
            (Fitted::Samples(samples), Fitted::Samples(more)) => {
                *samples = thinned(samples, more, fitted, seed);
            }
            _ => return None,
        }
        if !self.experts.merge(&added.experts) {
            return None;
        }
        if let (Some(moment), Some(more)) = (&mut self.holdout_moment, &added.holdout_moment) {
            moment.merge(more);
        }
        self.holdout = thinned(&self.holdout, &added.holdout, held_out, !seed);
        Some(self)
    }
}

/// As many of `samples` as are to stay, and all of `more`.
fn thinned(samples: &Samples, more: &Samples, share: Share, seed: u64) -> Samples {
    let mut all = Samples::new(samples.d());
    let staying = stratified(samples.len() as u64, share.of_before(), seed);
    all.append(samples, staying.into_iter().map(|i| i as usize));
    all.append(more, 0..more.len());
    all
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;
    use crate::{Experts, MomentScratch, SecondMoment};

    const D: usize = 3;

    /// An input that has seen the tokens of these numbers, of which `n_samples` are kept.
    fn seen(tokens: std::ops::Range<u16>, n_samples: u64, has_moment: bool) -> CalibratedInput {
        let row = |t: u16| [f32::from(t), 1.0, -f32::from(t % 7)];
        let rows: Vec<f32> = tokens.clone().flat_map(row).collect();
        let mut moment = SecondMoment::new(D);
        moment.add(&rows, &ReferenceMatMul, &mut MomentScratch::default());
        let mut samples = Samples::new(D);
        for i in stratified(tokens.len() as u64, n_samples, 3) {
            samples.push(&rows[i as usize * D..][..D]);
        }
        let fitted = if has_moment {
            Fitted::Moment(moment.clone())
        } else {
            Fitted::Samples(samples.clone())
        };
        let holdout_moment = has_moment.then_some(moment);
        CalibratedInput { fitted, holdout_moment, holdout: samples, experts: Experts::Unknown }
    }

    #[test]
    fn two_texts_make_the_moment_of_both_and_samples_by_their_lengths() {
        let share = Share { n_before: 300, n_added: 100, limit: 40 };
        assert_eq!((share.of_added(), share.of_before()), (10, 30));
        for has_moment in [true, false] {
            let (before, added) = (seen(0..300, 40, has_moment), seen(300..400, 10, has_moment));
            let all = before.merged(&added, (share, share), 5).unwrap();
            let whole = seen(0..400, 40, has_moment);
            if has_moment {
                let (a, b) = (all.second_moment().unwrap(), whole.second_moment().unwrap());
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()));
                assert_eq!(all.holdout_moment.as_ref().unwrap().n_tokens(), 400);
            }
            let firsts: Vec<f32> = all.holdout_samples().chunks(D).map(|x| x[0]).collect();
            assert_eq!((firsts.len(), firsts.iter().filter(|x| **x >= 300.0).count()), (40, 10));
            assert!(firsts.is_sorted(), "each once, in the order of the text");
        }
    }

    #[test]
    fn shares_are_kept_however_small_and_what_differs_is_not_put_together() {
        for (n_before, n_added, limit) in [(1, 1, 1), (1_000_000, 1, 10), (0, 5, 4), (5, 0, 4)] {
            let share = Share { n_before, n_added, limit };
            assert!(share.of_added() + share.of_before() <= limit.max(1), "{share:?}");
            assert_eq!(share.of_added() > 0, n_added > 0, "{share:?}");
        }
        let share = Share { n_before: 8, n_added: 8, limit: 4 };
        let mixed = seen(0..8, 4, true).merged(&seen(0..8, 4, false), (share, share), 1);
        assert_eq!(mixed, None);
    }
}
