//! What is known about an input while tokens come in.

use numerics::MatMul;

use crate::{
    CalibratedInput, Experts, Fitted, MomentScratch, PassageKind, Samples, SecondMoment, stratified,
};

/// How many tokens of each kind will come, and which of them are kept as samples.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Ascending positions among the tokens of their kind.
    positions: [Vec<u64>; 2],
}

impl Sampling {
    /// At most `n_samples` of `n_fitted` tokens and `n_holdout` of `n_held_out`, as `seed` decides.
    #[must_use]
    pub fn new(
        (n_fitted, n_samples): (u64, u64),
        (n_held_out, n_holdout): (u64, u64),
        seed: u64,
    ) -> Self {
        let fitted = stratified(n_fitted, n_samples, seed);
        Self { positions: [fitted, stratified(n_held_out, n_holdout, !seed)] }
    }

    /// The samples among `n` tokens of `kind` from number `first` on, counted from there.
    pub fn among(&self, kind: PassageKind, first: u64, n: u64) -> impl Iterator<Item = usize> {
        let all = &self.positions[kind as usize];
        let range = all.partition_point(|&t| t < first)..all.partition_point(|&t| t < first + n);
        all[range].iter().map(move |t| (t - first) as usize)
    }
}

/// A [`CalibratedInput`] that grows token by token.
#[derive(Clone, Debug)]
pub struct GrowingInput {
    data: CalibratedInput,
}

impl GrowingInput {
    /// Nothing known yet about inputs of `d` values, whose second moment is formed if `d` is at most
    /// `max_moment_dim`.
    ///
    /// # Panics
    /// If `d` is 0.
    #[must_use]
    pub fn new(d: usize, max_moment_dim: usize) -> Self {
        let data = match d <= max_moment_dim {
            true => CalibratedInput {
                fitted: Fitted::Moment(SecondMoment::new(d)),
                holdout_moment: Some(SecondMoment::new(d)),
                holdout: Samples::new(d),
                experts: Experts::Unknown,
            },
            false => CalibratedInput {
                fitted: Fitted::Samples(Samples::new(d)),
                holdout_moment: None,
                holdout: Samples::new(d),
                experts: Experts::Unknown,
            },
        };
        Self { data }
    }

    /// Length of an input.
    #[must_use]
    pub fn d(&self) -> usize {
        self.data.d()
    }

    /// Adds the tokens of `kind` from number `first` on; the floating point operations that it took.
    ///
    /// # Shapes
    /// `rows`: [d, per_token, n]; of the rows of a token, a sample is one, in turn.
    ///
    /// # Panics
    /// If `rows` does not hold whole rows, or `per_token` is 0.
    pub fn add(
        &mut self,
        (kind, first): (PassageKind, u64),
        (rows, per_token): (&[f32], usize),
        sampling: &Sampling,
        mat_mul: &dyn MatMul,
        scratch: &mut MomentScratch,
    ) -> f64 {
        let d = self.d();
        let n_rows = (rows.len() / d) as u64;
        let (moment, samples) = self.parts(kind);
        let mut flops = 0.0;
        if let Some(moment) = moment {
            moment.add(rows, mat_mul, scratch);
            flops = SecondMoment::flops(d, n_rows);
        }
        if let Some(samples) = samples {
            for token in sampling.among(kind, first, n_rows / per_token as u64) {
                let row = token * per_token + (first as usize + token) % per_token;
                samples.push(&rows[row * d..(row + 1) * d]);
            }
        }
        flops
    }

    /// Adds inputs to fit to, each to what its expert has seen, of which there are so many, with `whole` moments or their
    /// diagonals; the floating point operations that it took.
    ///
    /// # Shapes
    /// `rows`: [d, n], `experts`: `[n]`, each below `n_experts`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn add_by_expert(
        &mut self,
        rows: &[f32],
        experts: &[usize],
        (n_experts, whole): (usize, bool),
        (mat_mul, scratch): (&dyn MatMul, &mut MomentScratch),
    ) -> f64 {
        let d = self.d();
        if self.data.experts == Experts::Unknown {
            self.data.experts = Experts::new(n_experts, d, whole);
        }
        self.data.experts.add((rows, d), experts, mat_mul, scratch)
    }

    /// What grows with tokens of `kind`.
    fn parts(&mut self, kind: PassageKind) -> (Option<&mut SecondMoment>, Option<&mut Samples>) {
        let data = &mut self.data;
        match (kind, &mut data.fitted) {
            (PassageKind::HeldOut, _) => (data.holdout_moment.as_mut(), Some(&mut data.holdout)),
            (PassageKind::Fitted, Fitted::Moment(moment)) => (Some(moment), None),
            (PassageKind::Fitted, Fitted::Samples(samples)) => (None, Some(samples)),
        }
    }

    /// Everything collected.
    #[must_use]
    pub fn finish(self) -> CalibratedInput {
        self.data
    }
}
