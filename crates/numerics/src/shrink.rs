//! How far a second moment from a sample of text is to be trusted.
//!
//! H' = (1 - s) H + s diag(H), as in shrinkage estimates of covariance matrices (Ledoit and Wolf 2004);
//! s is chosen by what counts here: the error, on inputs that were held out, of rows coded for H'.

use std::str::FromStr;

/// Shrinkages that may be tried, ascending.
const GRID: [f64; 7] = [0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7];
/// Places in the grid that are tried first, ascending: how far a moment can be trusted differs by orders of magnitude, and the
/// error need not fall at once on the way to the best share.
const COARSE: [usize; 2] = [3, 5];
/// What a larger share must bring, as a factor of the error: the probe's errors differ by about so much from
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

/// The shrinkage of a small grid with the least error on inputs that were held out, and what `attempt` made of it beside that
/// error: the better of two that are far apart, the least if that is the smaller of them, then the best of those beside it. A
/// larger share must lower the error by a percent or more, a smaller one may raise it by less. Of what `attempt` makes, two are
/// there at most.
///
/// # Errors
/// As `attempt`.
pub fn choose_shrink<T, E>(
    mut attempt: impl FnMut(f64) -> Result<(f64, T), E>,
) -> Result<(f64, T), E> {
    let (error, made) = attempt(GRID[COARSE[0]])?;
    let mut best = Found { place: COARSE[0], error, made };
    best.or_better(COARSE[1], attempt(GRID[COARSE[1]])?);
    if best.place == COARSE[0] || best.error.is_nan() {
        best.or_better(0, attempt(GRID[0])?);
    }
    let centre = best.place;
    for place in [centre.checked_sub(1), Some(centre + 1)].into_iter().flatten() {
        if place < GRID.len() {
            best.or_better(place, attempt(GRID[place])?);
        }
    }
    // Between 0 and its neighbour in the coarse grid two are left.
    if best.place == 1 {
        best.or_better(2, attempt(GRID[2])?);
    }
    Ok((GRID[best.place], best.made))
}

/// The best place in the grid so far.
struct Found<T> {
    place: usize,
    error: f64,
    made: T,
}

impl<T> Found<T> {
    fn or_better(&mut self, place: usize, (error, made): (f64, T)) {
        let better = match place > self.place {
            true => error < WORTH_IT * self.error,
            false => WORTH_IT * error <= self.error,
        };
        // An error that is no number is worse than any.
        if better || (self.error.is_nan() && (place < self.place || !error.is_nan())) {
            *self = Self { place, error, made };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share that is chosen for these errors at the places of the grid, and the places that were tried.
    fn chosen(errors: [f64; 7]) -> (f64, Vec<f64>) {
        let mut tried = vec![];
        let (share, made) = choose_shrink(|share| {
            tried.push(share);
            let place = GRID.iter().position(|s| *s == share).unwrap();
            Ok::<_, ()>((errors[place], share))
        })
        .unwrap();
        assert_eq!(share, made);
        (share, tried)
    }

    #[test]
    fn the_best_share_is_found_behind_one_that_does_not_help() {
        // What stopped the search before: the first steps bring nothing.
        assert_eq!(chosen([20.5, 20.5, 20.4, 20.0, 18.0, 15.9, 15.8]).0, 0.4);
        assert_eq!(chosen([20.5, 20.5, 20.4, 20.0, 18.0, 15.9, 15.0]).0, 0.7);
        assert_eq!(chosen([9.0, 8.0, 7.0, 6.0, 5.0, 6.0, 7.0]).0, 0.2);
        assert_eq!(chosen([9.0, 8.0, 5.0, 6.0, 7.0, 8.0, 9.0]).0, 0.03);
    }

    #[test]
    fn a_moment_is_left_alone_where_little_is_gained() {
        let (share, tried) = chosen([1.0, 0.995, 1.0, 1.1, 1.2, 1.3, 1.4]);
        assert_eq!((share, tried), (0.0, vec![0.1, 0.4, 0.0, 0.01]));
        let (share, tried) = chosen([1.0, 0.9, 0.8, 1.1, 1.2, 1.3, 1.4]);
        assert_eq!((share, tried), (0.03, vec![0.1, 0.4, 0.0, 0.01, 0.03]));
        // The smaller of two that are as good.
        assert_eq!(chosen([2.0, 2.0, 1.003, 1.0, 1.0, 2.0, 2.0]).0, 0.03);
    }

    #[test]
    fn an_error_that_is_no_number_is_never_chosen_before_one() {
        let nan = f64::NAN;
        assert_eq!(chosen([nan, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0]).0, 0.03);
        assert_eq!(chosen([1.0, nan, nan, nan, nan, nan, nan]).0, 0.0);
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
