//! Pictures as SVG: charts of points and lines, and bars.
//!
//! Letters are as large as they are told to be, whatever the width of the picture, so every picture is drawn
//! for the width at which it is shown. What tells series apart is never colour alone: each has a marker and
//! a pattern of dashes of its own, and bars have textures.

mod bars;
mod chart;
mod mark;
mod palette;
mod place;
mod text;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::prelude::SVGBackend;

pub use bars::{Bar, Bars, Part, Texture};
pub use chart::{Axis, Chart, Series};
pub use palette::Palette;

/// Where figures are drawn.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Drawing into memory knows no failure but a layout without room, and heights are made to fit.
pub(crate) const DRAWN: &str = "drawing into memory";

/// A picture that can be drawn at any width.
pub trait Figure {
    /// Height in pixels at a width in pixels.
    fn height(&self, width: u32) -> u32;

    /// Draws into an area of that size.
    #[doc(hidden)]
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>);
}

/// The figure as an SVG element of `width` pixels.
#[must_use]
pub fn svg(figure: &dyn Figure, width: u32) -> String {
    let mut text = String::new();
    {
        let area =
            SVGBackend::with_string(&mut text, (width, figure.height(width))).into_drawing_area();
        figure.draw(&area);
        area.present().expect(DRAWN);
    }
    // In a page the declaration of the document's type would be a second one.
    text.find("<svg").map_or(String::new(), |start| text.split_off(start))
}

/// The figure as a file of its own: with a background, since nobody knows on what it will be shown.
#[must_use]
pub fn svg_file(figure: &dyn Figure, width: u32) -> String {
    svg(figure, width).replacen('>', ">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>", 1)
}
