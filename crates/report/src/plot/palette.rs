//! Colours, each in a form for light and one for dark paper.

use std::fmt::Write;

use plotters::style::RGBColor;

/// A colour on light paper and what it becomes on dark paper.
#[derive(Clone, Copy, Debug)]
struct Pair {
    light: RGBColor,
    dark: RGBColor,
}

const fn pair(light: u32, dark: u32) -> Pair {
    Pair { light: rgb(light), dark: rgb(dark) }
}

#[allow(clippy::cast_possible_truncation, reason = "one byte each")]
const fn rgb(hex: u32) -> RGBColor {
    RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
}

const INK: Pair = pair(0x1f_2328, 0xe6_edf3);
const SOFT: Pair = pair(0x59_636e, 0x9d_a7b3);
const GRID: Pair = pair(0xd5_dae0, 0x34_3b44);

/// After Okabe and Ito, "Color Universal Design" (2008), darkened where needed on white.
const SERIES: [Pair; 6] = [
    pair(0x00_72b2, 0x56_b4e9),
    pair(0xd5_5e00, 0xff_9350),
    pair(0x00_7f5c, 0x3d_dba8),
    pair(0xaa_4499, 0xe7_9cd8),
    pair(0x8f_6b00, 0xf0_c24b),
    pair(0x5b_5b6b, 0xb5_b5c8),
];

/// The colours of pictures.
#[derive(Clone, Copy, Debug)]
pub struct Palette;

impl Palette {
    /// Text and axes.
    pub(crate) const INK: RGBColor = INK.light;
    /// Text of less weight.
    pub(crate) const SOFT: RGBColor = SOFT.light;
    /// Lines of the grid.
    pub(crate) const GRID: RGBColor = GRID.light;

    /// Colour of the series `index`.
    pub(crate) fn series(index: usize) -> RGBColor {
        SERIES[index % SERIES.len()].light
    }

    /// Style rules that give pictures their dark colours where the reader's system asks for them. Pictures
    /// carry the light ones as attributes, which every rule overrides.
    #[must_use]
    pub fn dark_style() -> String {
        let mut rules = "@media (prefers-color-scheme: dark) {\n".to_owned();
        for Pair { light, dark } in [INK, SOFT, GRID].iter().chain(&SERIES) {
            for property in ["fill", "stroke"] {
                let (light, dark) = (hex(*light), hex(*dark));
                let _ = writeln!(rules, "  svg [{property}=\"{light}\"] {{ {property}: {dark}; }}");
            }
        }
        rules + "}\n"
    }
}

/// As plotters writes it.
fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn light_colours_are_distinct_so_that_each_has_one_dark_form() {
        let all: HashSet<String> =
            [INK, SOFT, GRID].iter().chain(&SERIES).map(|p| hex(p.light)).collect();
        assert_eq!(all.len(), 3 + SERIES.len());
    }

    /// WCAG 2: relative luminance and contrast.
    #[test]
    fn colours_stand_out_from_their_paper() {
        let luminance = |RGBColor(r, g, b): RGBColor| {
            let linear = |v: u8| {
                let v = f64::from(v) / 255.0;
                if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
        };
        let contrast = |a: RGBColor, b: RGBColor| {
            let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
            (a / b).max(b / a)
        };
        let (white, black) = (rgb(0xff_ffff), rgb(0x0d_1117));
        for pair in SERIES {
            assert!(contrast(pair.light, white) > 3.0, "{pair:?}");
            assert!(contrast(pair.dark, black) > 3.0, "{pair:?}");
        }
        for pair in [INK, SOFT] {
            assert!(contrast(pair.light, white) > 4.5 && contrast(pair.dark, black) > 4.5);
        }
    }
}
