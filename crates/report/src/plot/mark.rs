//! What tells series apart without colour: markers and dashes.

use plotters::element::{Circle, PathElement, Polygon};
use plotters::style::{Color, RGBColor, ShapeStyle};

use super::{Area, DRAWN, Palette};

/// Lengths in pixels, drawn and left out in turn.
const DASHES: [&[f64]; 6] =
    [&[], &[9.0, 4.0], &[2.0, 3.0], &[10.0, 3.0, 2.0, 3.0], &[5.0, 5.0], &[14.0, 3.0, 5.0, 3.0]];

/// Half the size of a marker in pixels.
pub(crate) const RADIUS: i32 = 4;

/// A place in pixels.
pub(crate) type Pixel = (i32, i32);

/// How the series `index` looks. The first six differ in colour, marker and dashes; later ones repeat the
/// colours with hollow markers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    index: usize,
}

impl Look {
    pub fn new(index: usize) -> Self {
        Self { index }
    }

    pub fn color(self) -> RGBColor {
        Palette::series(self.index)
    }

    /// Draws the marker around `at`.
    pub fn marker(self, area: &Area<'_>, at: Pixel) {
        let hollow = self.index / 6 % 2 == 1;
        let style = if hollow { self.color().stroke_width(2) } else { self.color().filled() };
        let (x, y) = at;
        let r = RADIUS;
        let shape = |corners: &[Pixel]| {
            let points: Vec<Pixel> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
            if hollow {
                let closed: Vec<Pixel> = points.iter().chain(points.first()).copied().collect();
                area.draw(&PathElement::new(closed, style)).expect(DRAWN);
            } else {
                area.draw(&Polygon::new(points, style)).expect(DRAWN);
            }
        };
        match self.index % 6 {
            0 => area.draw(&Circle::new(at, r, style)).expect(DRAWN),
            1 => shape(&[(-r, -r), (r, -r), (r, r), (-r, r)]),
            2 => shape(&[(-r - 1, r), (r + 1, r), (0, -r - 1)]),
            3 => shape(&[(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)]),
            4 => shape(&[(-r - 1, -r), (r + 1, -r), (0, r + 1)]),
            _ => {
                let line = self.color().stroke_width(2);
                for ends in [[(x - r, y - r), (x + r, y + r)], [(x - r, y + r), (x + r, y - r)]] {
                    area.draw(&PathElement::new(ends, line)).expect(DRAWN);
                }
            }
        }
    }

    /// Draws a line through `points` in the series' dashes.
    pub fn line(self, area: &Area<'_>, points: &[Pixel]) {
        let style = self.color().stroke_width(2);
        let pattern = DASHES[self.index % DASHES.len()];
        if pattern.is_empty() {
            area.draw(&PathElement::new(points.to_vec(), style)).expect(DRAWN);
        }
        for dash in dashes(points, pattern) {
            area.draw(&PathElement::new(dash, style)).expect(DRAWN);
        }
    }
}

/// A thin line, for what belongs to no series.
pub(crate) fn thin(area: &Area<'_>, from: Pixel, to: Pixel, color: RGBColor) {
    let style: ShapeStyle = color.stroke_width(1);
    area.draw(&PathElement::new([from, to], style)).expect(DRAWN);
}

/// The drawn pieces of a line through `points`; the pattern goes on around corners.
fn dashes(points: &[Pixel], pattern: &[f64]) -> Vec<Vec<Pixel>> {
    let mut pieces: Vec<Vec<Pixel>> = Vec::new();
    if pattern.is_empty() {
        return pieces;
    }
    let (mut element, mut left) = (0, pattern[0]);
    for pair in points.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]].map(|(x, y)| (f64::from(x), f64::from(y)));
        let length = (x1 - x0).hypot(y1 - y0);
        let at = |d: f64| {
            let share = if length > 0.0 { d / length } else { 0.0 };
            (round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0)))
        };
        let mut done = 0.0;
        while done < length {
            let step = left.min(length - done);
            if element % 2 == 0 {
                pieces.push(vec![at(done), at(done + step)]);
            }
            done += step;
            left -= step;
            if left <= 0.0 {
                element = (element + 1) % pattern.len();
                left = pattern[element];
            }
        }
    }
    pieces
}

#[allow(clippy::cast_possible_truncation, reason = "pixels of a picture")]
fn round(v: f64) -> i32 {
    v.round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_cover_their_share_and_end_at_the_end() {
        let points = [(0, 0), (50, 0), (100, 0)];
        let pieces = dashes(&points, &[5.0, 5.0]);
        let drawn: i32 = pieces.iter().map(|p| p[1].0 - p[0].0).sum();
        assert_eq!(drawn, 50);
        assert!(pieces.iter().flatten().all(|p| (0..=100).contains(&p.0)));
        assert!(dashes(&[(3, 3), (3, 3)], &[5.0, 5.0]).is_empty());
    }
}
