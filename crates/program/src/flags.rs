//! Values of flags, as clap asks for them.

use std::str::FromStr;

/// Number of threads: all cores unless `asked` otherwise.
#[must_use]
pub fn n_threads(asked: Option<impl Into<usize>>) -> usize {
    let all_cores = || std::thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(all_cores, Into::into)
}

/// A finite number for which `fits` holds.
///
/// # Errors
/// What is `wanted`.
pub fn number<T: FromStr + Copy + Into<f64>>(
    text: &str,
    wanted: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<T, String> {
    let is_fit = |n: f64| n.is_finite() && fits(n);
    text.parse().ok().filter(|n: &T| is_fit((*n).into())).ok_or_else(|| format!("use {wanted}"))
}

/// A number above 0.
///
/// # Errors
/// As [`number`].
pub fn positive<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    number(text, "a number above 0", |n| n > 0.0)
}

/// A number of at least 0.
///
/// # Errors
/// As [`number`].
pub fn not_negative(text: &str) -> Result<f32, String> {
    number(text, "a number of at least 0", |n| n >= 0.0)
}
