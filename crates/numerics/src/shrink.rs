//! How far a second moment from a sample of text is to be trusted.
//!
//! H' = (1 - s) H + s (diag(H) + mean(diag(H)) I) / 2, a shrinkage estimate as those of covariance matrices (Ledoit and Wolf
//! 2004). s is chosen by what counts here: the error, on inputs that were held out, of rows coded for H'.
//!
//! The held-out inputs are of the same text as H; what a user's text will be like nobody knows. An error in directions that
//! this text hardly uses costs nothing here and much there, so of shares that do about alike the largest is taken, as in the
//! one-standard-error rule (Breiman et al. 1984, "Classification and regression trees").

use std::str::FromStr;

/// Shrinkages that are tried, one after the other.
const GRID: [f64; 7] = [0.7, 0.4, 0.2, 0.1, 0.03, 0.01, 0.0];
/// What a smaller share must bring, as a factor of the error.
const WORTH_IT: f64 = 0.98;

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

/// The shrinkage of a small grid, descending, from which on a smaller one lowers the error by less than two percent on inputs
/// that were held out, and what `attempt` made of it beside that error. Of what `attempt` makes, two are there at most.
///
/// # Errors
/// As `attempt`.
pub fn choose_shrink<T, E>(
    mut attempt: impl FnMut(f64) -> Result<(f64, T), E>,
) -> Result<(f64, T), E> {
    let [largest, smaller @ ..] = GRID;
    let (mut error, mut made) = attempt(largest)?;
    let mut best = largest;
    for share in smaller {
        let (tried, made_then) = attempt(share)?;
        // An error that is no number is worse than any, and says nothing about smaller shares.
        let is_worth_it = tried < WORTH_IT * error;
        if error.is_finite() && !is_worth_it {
            break;
        }
        (best, error, made) = (share, tried, made_then);
    }
    Ok((best, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share that is chosen for these errors at the places of the grid, and how many were tried.
    fn chosen(errors: [f64; 7]) -> (f64, usize) {
        let mut tried = 0;
        let (share, made) = choose_shrink(|share| {
            tried += 1;
            let place = GRID.iter().position(|s| *s == share).unwrap();
            Ok::<_, ()>((errors[place], share))
        })
        .unwrap();
        assert_eq!(share, made);
        (share, tried)
    }

    #[test]
    fn the_largest_share_is_taken_that_costs_little() {
        assert_eq!(chosen([1.0, 0.99, 0.5, 0.5, 0.5, 0.5, 0.5]), (0.7, 2));
        assert_eq!(chosen([1.0, 0.9, 0.89, 0.95, 1.0, 1.1, 1.2]), (0.4, 3));
        assert_eq!(chosen([1.0, 0.9, 0.8, 0.7, 0.65, 0.64, 0.63]), (0.03, 6));
        // A text that says all there is to know.
        assert_eq!(chosen([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), (0.0, 7));
    }

    #[test]
    fn an_error_that_is_no_number_is_never_chosen_before_one() {
        let nan = f64::NAN;
        assert_eq!(chosen([nan, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0]).0, 0.4);
        assert_eq!(chosen([1.0, nan, nan, nan, nan, nan, nan]).0, 0.7);
        assert_eq!(chosen([nan, nan, 3.0, 2.9, 2.0, 2.0, 2.0]).0, 0.03);
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
