//! What each expert of a layer has seen.

use numerics::MatMul;

use crate::{MomentScratch, SecondMoment};

/// Sums of squares of the inputs of one expert: the diagonal of its [`SecondMoment`].
#[derive(Clone, Debug, PartialEq)]
pub struct SquareSums {
    sums: Vec<f32>,
    n_tokens: u64,
}

impl SquareSums {
    /// Those of no tokens, for inputs of `d` values.
    fn new(d: usize) -> Self {
        Self { sums: vec![0.0; d], n_tokens: 0 }
    }

    /// Sums over `n_tokens` tokens; `None` if one of them is none of squares.
    pub(crate) fn from_sums(sums: Vec<f32>, n_tokens: u64) -> Option<Self> {
        sums.iter().all(|v| v.is_finite() && *v >= 0.0).then_some(Self { sums, n_tokens })
    }

    /// The sums, `[d]`.
    #[must_use]
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Mean of x_i^2, `[d]`; zeros where nothing was seen.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f32> {
        let n_tokens = self.n_tokens.max(1) as f64;
        self.sums.iter().map(|sum| (f64::from(*sum) / n_tokens) as f32).collect()
    }

    /// Number of tokens in the sums.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    fn add(&mut self, rows: &[f32]) {
        let d = self.sums.len();
        let mut added = vec![0f64; d];
        for row in rows.chunks_exact(d) {
            added.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
        self.sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added as f32);
        self.n_tokens += (rows.len() / d) as u64;
    }

    fn merge(&mut self, other: &Self) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        self.n_tokens += other.n_tokens;
    }
}

/// What each expert of a layer has seen of the tokens to fit to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Experts {
    /// An input of no experts, or nobody kept that.
    #[default]
    Unknown,
    /// Their second moments.
    Moments(Vec<SecondMoment>),
    /// The diagonals alone, where all moments would be too large.
    Squares(Vec<SquareSums>),
}

impl Experts {
    /// How many tokens each has seen, `[n_experts]`.
    #[must_use]
    pub fn n_tokens(&self) -> Vec<u64> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Moments(all) => all.iter().map(SecondMoment::n_tokens).collect(),
            Self::Squares(all) => all.iter().map(SquareSums::n_tokens).collect(),
        }
    }

    /// Number of experts.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n_tokens().len()
    }

    /// Mean of x_i^2 of what each has seen, [d, n_experts]; zeros of one that has seen nothing.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f32> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Moments(all) => all.iter().flat_map(SecondMoment::mean_squares).collect(),
            Self::Squares(all) => all.iter().flat_map(SquareSums::mean_squares).collect(),
        }
    }

    /// Nothing known yet about `n` experts with inputs of `d` values; `whole` moments or their diagonals.
    pub(crate) fn new(n: usize, d: usize, whole: bool) -> Self {
        match whole {
            true => Self::Moments((0..n).map(|_| SecondMoment::new(d)).collect()),
            false => Self::Squares(vec![SquareSums::new(d); n]),
        }
    }

    /// Adds inputs, each to what its expert has seen; the floating point operations that it took.
    ///
    /// # Shapes
    /// `rows`: [d, n], `experts`: `[n]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub(crate) fn add(
        &mut self,
        (rows, d): (&[f32], usize),
        experts: &[usize],
        mat_mul: &dyn MatMul,
        scratch: &mut MomentScratch,
    ) -> f64 {
        assert_eq!(rows.len(), experts.len() * d, "a row for every expert");
        let mut own = Vec::new();
        for e in 0..self.n() {
            own.clear();
            let seen = rows.chunks_exact(d).zip(experts).filter(|(_, expert)| **expert == e);
            seen.for_each(|(row, _)| own.extend_from_slice(row));
            match self {
                Self::Unknown => {}
                Self::Moments(all) => all[e].add(&own, mat_mul, scratch),
                Self::Squares(all) => all[e].add(&own),
            }
        }
        match self {
            Self::Moments(_) => SecondMoment::flops(d, experts.len() as u64),
            Self::Unknown | Self::Squares(_) => 0.0,
        }
    }

    /// Adds what was seen elsewhere; `false` if that is kept in another way or of another number of experts.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown, Self::Unknown) => true,
            (Self::Moments(all), Self::Moments(more)) if all.len() == more.len() => {
                all.iter_mut().zip(more).for_each(|(moment, more)| moment.merge(more));
                true
            }
            (Self::Squares(all), Self::Squares(more)) if all.len() == more.len() => {
                all.iter_mut().zip(more).for_each(|(squares, more)| squares.merge(more));
                true
            }
            _ => false,
        }
    }

    /// Checks the moments of those that have seen something. The error says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Moments(all) => {
                all.iter().filter(|m| m.n_tokens() > 0).try_for_each(SecondMoment::check)
            }
            Self::Unknown | Self::Squares(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;

    const ROWS: [f32; 8] = [1.0, 2.0, -3.0, 0.5, 4.0, 1.0, 0.0, -2.0];

    /// Three experts after two batches.
    fn seen(whole: bool) -> Experts {
        let mut experts = Experts::new(3, 2, whole);
        let mut scratch = MomentScratch::default();
        let mut add =
            |rows: &[f32], of: &[usize]| experts.add((rows, 2), of, &ReferenceMatMul, &mut scratch);
        assert_eq!(add(&ROWS[..6], &[2, 0, 2]), if whole { 3.0 * 6.0 } else { 0.0 });
        add(&ROWS[6..], &[0]);
        experts
    }

    /// Every expert has what its own rows give, and one that no token uses that of none.
    #[test]
    fn experts_see_their_own_rows() {
        let Experts::Moments(moments) = seen(true) else { panic!("as asked for") };
        assert_eq!(moments[0].packed(), [9.0, -1.5, 4.25]);
        assert_eq!(moments[1].packed(), [0.0; 3]);
        assert_eq!(moments[2].packed(), [17.0, 6.0, 5.0]);
        assert_eq!(seen(true).n_tokens(), [2, 0, 2]);
        assert_eq!(seen(false).n_tokens(), [2, 0, 2]);
        assert_eq!(seen(true).mean_squares(), [4.5, 2.125, 0.0, 0.0, 8.5, 2.5]);
        assert_eq!(seen(false).mean_squares(), seen(true).mean_squares());
    }

    #[test]
    fn two_texts_add_up_where_they_are_of_one_kind() {
        for whole in [false, true] {
            let mut twice = seen(whole);
            assert!(twice.merge(&seen(whole)));
            assert_eq!(twice.n_tokens(), [4, 0, 4]);
            for other in [seen(!whole), Experts::Unknown, Experts::new(2, 2, whole)] {
                assert!(!twice.merge(&other));
            }
        }
        assert!(Experts::Unknown.merge(&Experts::Unknown));
    }

    #[test]
    fn sums_that_are_none_of_squares_are_refused() {
        assert!(SquareSums::from_sums(vec![0.0, 2.0], 1).is_some());
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(SquareSums::from_sums(vec![1.0, bad], 1), None);
        }
    }
}
