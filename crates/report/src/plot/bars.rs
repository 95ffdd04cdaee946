//! Horizontal bars with parts, each with its label above: labels of any length find room on a phone.

use plotters::element::Rectangle;
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use super::{Area, DRAWN, Figure, Palette, mark, text};

/// What fills a part of a bar; textures tell parts apart without colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// Filled.
    Full,
    /// Upright lines.
    Lines,
    /// An outline.
    Hollow,
}

/// One kind of part, the same in all bars.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name in the legend; empty for none.
    pub name: String,
    /// What fills it.
    pub texture: Texture,
}

impl Part {
    /// A part called `name`.
    #[must_use]
    pub fn new(name: &str, texture: Texture) -> Self {
        Self { name: name.to_owned(), texture }
    }
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands above it.
    pub label: String,
    /// Lengths of its parts.
    pub values: Vec<f64>,
    /// What stands at its end.
    pub text: String,
    /// Decides the colour: bars of one thing have the same number.
    pub series: usize,
}

/// Groups of bars on one scale from 0.
#[derive(Clone, Debug)]
pub struct Bars {
    title: String,
    parts: Vec<Part>,
    groups: Vec<(String, Vec<Bar>)>,
    mark: Option<(f64, String)>,
}

const BAR: i32 = 14;
const BAR_GAP: i32 = 6;
const GROUP_GAP: i32 = 10;
const MARGIN: i32 = 4;
const SWATCH: i32 = 22;

impl Bars {
    /// No bars yet.
    #[must_use]
    pub fn new(title: &str, parts: Vec<Part>) -> Self {
        Self { title: title.to_owned(), parts, groups: Vec::new(), mark: None }
    }

    /// Appends a group under a heading, which may be empty.
    #[must_use]
    pub fn group(mut self, heading: &str, bars: Vec<Bar>) -> Self {
        self.groups.push((heading.to_owned(), bars));
        self
    }

    /// Draws a line through all bars at `value`, named in the legend.
    #[must_use]
    pub fn mark(mut self, value: f64, name: &str) -> Self {
        self.mark = Some((value, name.to_owned()));
        self
    }

    fn head_lines(&self, width: i32) -> i32 {
        i32::try_from(text::wrap(&self.title, width - 2 * MARGIN).len()).unwrap_or(0)
    }

    fn legend(&self) -> Vec<(Option<Texture>, &str)> {
        let parts = self.parts.iter().filter(|p| !p.name.is_empty());
        let parts = parts.map(|p| (Some(p.texture), p.name.as_str()));
        parts.chain(self.mark.iter().map(|(_, name)| (None, name.as_str()))).collect()
    }

    /// Pixels per unit, so that the longest bar leaves room for the text at its end.
    fn scale(&self, width: i32) -> f64 {
        let bars = self.groups.iter().flat_map(|(_, bars)| bars);
        let marked = self.mark.as_ref().map_or(0.0, |(v, _)| *v);
        let fitting = bars.filter_map(|bar| {
            // The text may stand behind the mark.
            let length = bar.values.iter().filter(|v| v.is_finite()).sum::<f64>().max(marked);
            let room = width - 2 * MARGIN - text::width(&bar.text) - 12;
            (length > 0.0).then(|| f64::from(room.max(20)) / length)
        });
        fitting.fold(f64::INFINITY, f64::min)
    }

    fn draw_bar(&self, area: &Area<'_>, bar: &Bar, top: i32, scale: f64) {
        let color = Palette::series(bar.series);
        let mut start = 0.0;
        for (part, value) in self.parts.iter().zip(&bar.values) {
            let end = start + if value.is_finite() { value * scale } else { 0.0 };
            let corners = [(MARGIN + pixels(start), top), (MARGIN + pixels(end), top + BAR)];
            fill(area, corners, part.texture, color);
            start = end;
        }
        let mut x = MARGIN + pixels(start) + 6;
        if let Some((value, _)) = &self.mark {
            let mark = MARGIN + pixels(value * scale);
            mark::thin(area, (mark, top - 2), (mark, top + BAR + 2), Palette::INK);
            if (x - 3..x + text::width(&bar.text)).contains(&mark) {
                x = mark + 5;
            }
        }
        text::write(area, &bar.text, (x, top + BAR / 2), HPos::Left, Palette::INK);
    }

    fn draw_legend(&self, area: &Area<'_>, mut y: i32) -> i32 {
        for (texture, name) in self.legend() {
            let middle = y + text::LINE / 2;
            match texture {
                Some(texture) => {
                    let corners = [(MARGIN, middle - 5), (MARGIN + SWATCH, middle + 5)];
                    fill(area, corners, texture, Palette::SOFT);
                }
                None => mark::thin(area, (MARGIN + SWATCH / 2, y + 2), (MARGIN + SWATCH / 2, y + text::LINE - 2), Palette::INK),
            }
            text::write(area, name, (MARGIN + SWATCH + 6, middle), HPos::Left, Palette::INK);
            y += text::LINE;
        }
        y
    }
}

fn fill(area: &Area<'_>, [from, to]: [(i32, i32); 2], texture: Texture, color: RGBColor) {
    if texture == Texture::Full {
        area.draw(&Rectangle::new([from, to], color.filled())).expect(DRAWN);
        return;
    }
    area.draw(&Rectangle::new([from, to], color.stroke_width(1))).expect(DRAWN);
    if texture == Texture::Lines {
        for x in (from.0..to.0).step_by(4).skip(1) {
            mark::thin(area, (x, from.1), (x, to.1), color);
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "pixels of a picture")]
fn pixels(v: f64) -> i32 {
    v.round() as i32
}

impl Figure for Bars {
    fn height(&self, width: u32) -> u32 {
        let width = i32::try_from(width).unwrap_or(i32::MAX);
        let legend = i32::try_from(self.legend().len()).unwrap_or(0);
        let mut height = (self.head_lines(width) + legend) * text::LINE + 8;
        for (heading, bars) in &self.groups {
            let heading = if heading.is_empty() { 0 } else { text::LINE };
            let bars = i32::try_from(bars.len()).unwrap_or(0);
            height += heading + bars * (text::LINE + BAR + BAR_GAP) + GROUP_GAP;
        }
        u32::try_from(height).unwrap_or(0)
    }

    fn draw(&self, area: &Area<'_>) {
        let width = i32::try_from(area.dim_in_pixel().0).unwrap_or(i32::MAX);
        let lines = text::paragraph(area, &self.title, (MARGIN, text::LINE / 2), width - 2 * MARGIN);
        let mut y = self.draw_legend(area, lines * text::LINE) + 8;
        let scale = self.scale(width);
        let scale = if scale.is_finite() { scale } else { 0.0 };
        for (heading, bars) in &self.groups {
            if !heading.is_empty() {
                text::write(area, heading, (MARGIN, y + text::LINE / 2), HPos::Left, Palette::SOFT);
                y += text::LINE;
            }
            for bar in bars {
                let label = text::fit(&bar.label, width - 2 * MARGIN);
                let at = (MARGIN, y + text::LINE / 2);
                text::write(area, &label, at, HPos::Left, Palette::INK);
                y += text::LINE;
                self.draw_bar(area, bar, y, scale);
                y += BAR + BAR_GAP;
            }
            y += GROUP_GAP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::svg;

    fn bar(label: &str, values: &[f64]) -> Bar {
        Bar { label: label.into(), values: values.to_vec(), text: "1.0 GB".into(), series: 0 }
    }

    #[test]
    fn the_longest_bar_leaves_room_for_its_text() {
        let parts = vec![Part::new("weights", Texture::Full), Part::new("KV", Texture::Hollow)];
        let bars = Bars::new("memory", parts).group("4096", vec![bar("a", &[3.0, 5.0]), bar("b", &[1.0, 1.0])]);
        let end = f64::from(MARGIN) + 8.0 * bars.scale(360);
        assert!(end + f64::from(text::width("1.0 GB")) < 360.0);
    }

    #[test]
    fn no_bars_and_no_numbers_can_be_drawn() {
        let parts = || vec![Part::new("", Texture::Lines)];
        assert!(svg(&Bars::new("none", parts()), 360).starts_with("<svg"));
        let bars = Bars::new("t", parts()).group("", vec![bar("a", &[f64::NAN]), bar("b", &[0.0])]);
        assert!(!svg(&bars.mark(1.0, "limit"), 360).contains("NaN"));
    }
}
