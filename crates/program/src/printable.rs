//! Text from files, made harmless for a terminal.

use std::borrow::Cow;

/// `text` with its control characters escaped (`\n`, `\u{1b}`): it stays on its line and commands no terminal.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape =
        |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_characters_are_escaped() {
        for plain in ["", "a b \"c\"", "zw\u{f6}lf \u{1f600}"] {
            assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
        }
        assert_eq!(printable("a\nb\u{1b}[2J\u{9b}\u{7f}"), "a\\nb\\u{1b}[2J\\u{9b}\\u{7f}");
    }
}
