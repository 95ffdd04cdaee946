//! What is known about an input while tokens come in.

use numerics::MatMul;

use crate::{
    CalibratedInput, Fitted, MomentScratch, PassageKind, Samples, SecondMoment, stratified,
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
                experts: Vec::new(),
            },
            false => CalibratedInput {
                fitted: Fitted::Samples(Samples::new(d)),
                holdout_moment: None,
                holdout: Samples::new(d),
                experts: Vec::new(),
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

    /// Adds inputs to fit to, each to the second moment of its expert; the floating point operations that it took.
    ///
    /// # Shapes
    /// `rows`: [d, n], `experts`: `[n]`, each below `n_experts`.
    ///
    /// # Panics
    /// If the lengths do not fit, or an expert does not exist.
    pub fn add_by_expert(
        &mut self,
        rows: &[f32],
        (experts, n_experts): (&[usize], usize),
        mat_mul: &dyn MatMul,
        scratch: &mut MomentScratch,
    ) -> f64 {
        let d = self.d();
        assert_eq!(rows.len(), experts.len() * d, "a row for every expert");
        self.data.experts.resize_with(n_experts, || SecondMoment::new(d));
        let mut own = Vec::new();
        for (e, moment) in self.data.experts.iter_mut().enumerate() {
            own.clear();
            let seen = rows.chunks_exact(d).zip(experts).filter(|(_, expert)| **expert == e);
            seen.for_each(|(row, _)| own.extend_from_slice(row));
            moment.add(&own, mat_mul, scratch);
        }
        SecondMoment::flops(d, experts.len() as u64)
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

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;

    /// Every expert has the moment of its own rows, and one that no token uses that of none.
    #[test]
    fn experts_see_their_own_rows() {
        let rows = [1.0f32, 2.0, -3.0, 0.5, 4.0, 1.0, 0.0, -2.0];
        let mut growing = GrowingInput::new(2, 8);
        let mut scratch = MomentScratch::default();
        let mut add = |rows: &[f32], experts: &[usize]| {
            growing.add_by_expert(rows, (experts, 3), &ReferenceMatMul, &mut scratch)
        };
        assert_eq!(add(&rows[..6], &[2, 0, 2]), 3.0 * 6.0);
        add(&rows[6..], &[0]);
        let found = growing.finish().experts;
        let tokens: Vec<u64> = found.iter().map(SecondMoment::n_tokens).collect();
        assert_eq!(tokens, [2, 0, 2]);
        assert_eq!(found[0].packed(), [9.0, -1.5, 4.25]);
        assert_eq!(found[1].packed(), [0.0; 3]);
        assert_eq!(found[2].packed(), [17.0, 6.0, 5.0]);
    }
}
