//! Letters: their size, and a careful guess of how much room they take.

use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, IntoFont, RGBColor, TextStyle};

use super::{Area, DRAWN, Palette};

/// Height of letters in pixels.
pub(crate) const SIZE: i32 = 13;

/// Height of a line of text in pixels.
pub(crate) const LINE: i32 = 18;

/// Width of an average letter in a wide font, as a share of its height. The reader's font is not known.
const WIDTH_PER_SIZE: f64 = 0.65;

/// plotters divides sizes by this before it writes them.
const PLOTTERS_PER_PIXEL: f64 = 1.24;

/// Style of all text, `pos` telling which of its points is placed.
pub(crate) fn style(color: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    let font = ("system-ui, sans-serif", f64::from(SIZE) * PLOTTERS_PER_PIXEL).into_font();
    let style = TextStyle::from(font.transform(FontTransform::None)).pos(Pos::new(horizontal, VPos::Center));
    TextStyle { color: plotters::style::Color::to_backend_color(&color), ..style }
}

/// Estimated width of `text` in pixels; at least what any common font needs.
pub(crate) fn width(text: &str) -> i32 {
    let letters = text.chars().count() as f64;
    #[allow(clippy::cast_possible_truncation, reason = "pixels")]
    let pixels = (letters * f64::from(SIZE) * WIDTH_PER_SIZE).ceil() as i32;
    pixels
}

/// Writes `text` with its left end, or its right end, at `at`, vertically centred there.
pub(crate) fn write(area: &Area<'_>, text: &str, at: (i32, i32), align: HPos, color: RGBColor) {
    area.draw_text(text, &style(color, align), at).expect(DRAWN);
}

/// Writes `text` in ink, in as many lines as `room` pixels ask for, the first around `at`. Gives their number.
pub(crate) fn paragraph(area: &Area<'_>, text: &str, at: (i32, i32), room: i32) -> i32 {
    let lines = wrap(text, room);
    for (line, y) in lines.iter().zip((at.1..).step_by(LINE as usize)) {
        write(area, line, (at.0, y), HPos::Left, Palette::INK);
    }
    i32::try_from(lines.len()).unwrap_or(i32::MAX)
}

/// `text` broken between words, and within words that are too long, into lines of at most `room` pixels.
pub(crate) fn wrap(text: &str, room: i32) -> Vec<String> {
    let most = usize::try_from(room / width("x")).unwrap_or(1).max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(most) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + piece.chars().count() <= most => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

/// `text` cut to one line of at most `room` pixels, an ellipsis in place of what is left out.
pub(crate) fn fit(text: &str, room: i32) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let most = usize::try_from(room / width("x")).unwrap_or(0).saturating_sub(1);
    text.chars().take(most).chain(['\u{2026}']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_fit_and_lose_nothing() {
        let text = "a fairly long label with onewordthatislongerthananyline in it";
        for room in [40, 90, 300, 2000] {
            let lines = wrap(text, room);
            assert!(lines.iter().all(|l| width(l) <= room.max(width("x"))), "{room}: {lines:?}");
            let joined: String = lines.concat().split(' ').collect();
            assert_eq!(joined, text.split(' ').collect::<String>());
        }
        assert!(wrap("", 100).is_empty());
        assert_eq!(fit("short", 100), "short");
        assert!(width(&fit(text, 90)) <= 90 && fit(text, 90).ends_with('\u{2026}'));
    }
}
