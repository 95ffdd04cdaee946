//! How far a second moment from a sample of text is to be trusted.
//!
//! H' = (1 - s) H + s diag(H), as in shrinkage estimates of covariance matrices (Ledoit and Wolf 2004);
//! s is chosen by what counts here: the error, on inputs that were held out, of rows coded for H'.

use std::str::FromStr;
use std::sync::Arc;

use codec::EncodeContext;
use codec::functional::{functional_error, token_error};
use format::CodecError;

use super::{Moment, Probe};

/// Shrinkages that are tried, ascending.
const GRID: [f64; 6] = [0.0, 0.01, 0.03, 0.1, 0.2, 0.4];
/// What a step up must bring, as a factor of the error: the probe's errors differ by about so much from
/// those of the whole matrix, and a moment that is left alone is the better fit.
const WORTH_IT: f64 = 0.99;

/// Shrinkage of second moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shrink {
    /// Chosen on the hold-out.
    Auto,
    /// The same for every matrix, 0 to 1.
    Fixed(f64),
}

impl FromStr for Shrink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let share = text.parse().ok().filter(|s| (0.0..=1.0).contains(s));
        share.map(Self::Fixed).ok_or_else(|| "use auto or a number from 0 to 1".to_owned())
    }
}

impl std::fmt::Display for Shrink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(share) => share.fmt(f),
        }
    }
}

/// Inputs that nothing was fitted to.
#[derive(Clone, Copy, Debug)]
pub enum HeldOut<'a> {
    /// Their second moment, [d_in, d_in].
    Moment(&'a [f32]),
    /// Single ones, [d_in, n].
    Inputs(&'a [f32]),
}

impl HeldOut<'_> {
    /// Error of the outputs of the rows of `probe` on these inputs, a ratio of sums, if `error` is
    /// left of the rows.
    #[must_use]
    pub fn error(self, error: &[f32], probe: &Probe, context: &EncodeContext<'_>) -> f64 {
        let (rows, shape, mul_mat) = (probe.rows(), probe.shape(), context.mul_mat);
        match self {
            Self::Moment(h) => functional_error(error, rows, shape, h, mul_mat).ratio(),
            Self::Inputs(x) => token_error(error, rows, shape, x, mul_mat).ratio_of_sums,
        }
    }
}

/// The shrinkage of `moment` for rows like those of `probe`: the smallest of a small grid from
/// which the next larger one does not lower the rows' error on `held_out` by a percent or more.
///
/// # Errors
/// As [`Probe::error`].
pub fn choose_shrink(
    probe: &Probe,
    moment: &Moment,
    held_out: HeldOut<'_>,
    context: &EncodeContext<'_>,
) -> Result<f64, CodecError> {
    let mut best = (GRID[0], f64::INFINITY);
    for share in GRID {
        let left = probe.error(Some(Arc::new(moment.shrunk(share))), context)?;
        let error = held_out.error(&left, probe, context);
        if error >= WORTH_IT * best.1 {
            break;
        }
        best = (share, error);
    }
    Ok(best.0)
}

#[cfg(test)]
mod tests {
    use codec::{Progress, ReferenceMatMul};
    use format::MatrixShape;

    use super::*;
    use crate::sections::SectionsParams;

    struct Quiet;

    impl Progress for Quiet {
        fn stage(&self, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
    }

    const D: usize = 48;

    /// Values of about unit size; different for every seed.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| uniform() + uniform() + uniform()).collect()
    }

    /// Second moment of `n` inputs with common parts.
    fn moment(n: usize, seed: u64) -> Vec<f32> {
        let mix = values(3 * D, 1);
        let (common, own) = (values(3 * n, seed), values(D * n, seed + 1));
        let x = |t: usize, i: usize| {
            own[t * D + i] + (0..3).map(|j| common[3 * t + j] * mix[3 * i + j]).sum::<f32>()
        };
        let rows: Vec<f32> = (0..n * D).map(|i| x(i / D, i % D)).collect();
        let mut h = vec![0.0; D * D];
        for x in rows.chunks(D) {
            (0..D * D).for_each(|i| h[i] += x[i / D] * x[i % D]);
        }
        h
    }

    fn chosen(n_fitted: usize) -> f64 {
        let shape = MatrixShape::new(D, 400);
        let context = EncodeContext {
            mul_mat: &ReferenceMatMul,
            importance: None,
            seed: 3,
            progress: &Quiet,
        };
        let params = SectionsParams { sections: 4, damping: 1e-4, ..SectionsParams::default() };
        let probe = Probe::new(&params, &values(D * 400, 5), shape, &context).unwrap();
        assert_eq!(probe.shape(), MatrixShape::new(D, 50));
        let held_out = moment(4000, 17);
        let fitted = Moment::whole(moment(n_fitted, 7), D);
        choose_shrink(&probe, &fitted, HeldOut::Moment(&held_out), &context).unwrap()
    }

    #[test]
    fn few_inputs_are_trusted_less_than_many() {
        let (few, many) = (chosen(D / 2), chosen(100 * D));
        assert!(few > many && many <= 0.01, "{few} {many}");
    }

    #[test]
    fn text_forms() {
        assert_eq!("auto".parse(), Ok(Shrink::Auto));
        assert_eq!("0.1".parse(), Ok(Shrink::Fixed(0.1)));
        for bad in ["", "-0.1", "1.1", "nan", "Auto"] {
            assert!(bad.parse::<Shrink>().is_err(), "{bad}");
        }
        for shrink in [Shrink::Auto, Shrink::Fixed(0.03)] {
            assert_eq!(shrink.to_string().parse(), Ok(shrink));
        }
    }
}
