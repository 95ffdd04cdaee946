//! Values that are known by a name each.

/// The one of `all` that `name` calls `text`.
///
/// # Errors
/// One line with all names: "unknown `what` ...".
pub fn named<T: Copy>(
    what: &str,
    text: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, String> {
    all.iter().copied().find(|value| name(*value) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|value| name(*value)).collect();
        format!("unknown {what} '{text}': use one of {}", names.join(", "))
    })
}
