//! How far a second moment from a sample of text is to be trusted.
//!
//! H' = (1 - s) H + s diag(H), as in shrinkage estimates of covariance matrices (Ledoit and Wolf 2004);
//! s is chosen by what counts here: the error, on inputs that were held out, of rows coded for H'.

use std::str::FromStr;

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

/// The smallest shrinkage of a small grid from which the next larger one does not lower the error on inputs that were
/// held out by a percent or more, and what `attempt` made of it beside that error. Of what `attempt` makes, two are there
/// at most.
///
/// # Errors
/// As `attempt`.
pub fn choose_shrink<T, E>(
    mut attempt: impl FnMut(f64) -> Result<(f64, T), E>,
) -> Result<(f64, T), E> {
    let [first, larger @ ..] = GRID;
    let (mut least, made) = attempt(first)?;
    let mut best = (first, made);
    for share in larger {
        let (error, made) = attempt(share)?;
        if error >= WORTH_IT * least {
            break;
        }
        (least, best) = (error, (share, made));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_share_is_taken_after_which_little_is_gained() {
        let chosen = |errors: [f64; 6]| {
            let mut tried = errors.into_iter();
            let found = choose_shrink(|share| Ok::<_, ()>((tried.next().unwrap(), share)));
            (found.unwrap(), tried.len())
        };
        assert_eq!(chosen([1.0, 0.995, 0.5, 0.4, 0.3, 0.2]), ((0.0, 0.0), 4));
        assert_eq!(chosen([1.0, 0.9, 0.8, 0.9, 0.1, 0.1]), ((0.03, 0.03), 2));
        assert_eq!(chosen([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), ((0.4, 0.4), 0));
        assert_eq!(chosen([f64::NAN, 1.0, 2.0, 3.0, 4.0, 5.0]).0.0, 0.01);
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
