//! Charts of points and lines over two axes.

use plotters::chart::ChartBuilder;
use plotters::coord::types::RangedCoordf64;
use plotters::coord::{CoordTranslate, cartesian::Cartesian2d};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, TRANSPARENT};

use super::mark::{self, Look, Pixel, RADIUS};
use super::place::{self, Rect};
use super::{Area, DRAWN, Figure, Palette, text};

/// One of the two axes.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    logarithmic: bool,
    from: Option<f64>,
    format: fn(f64) -> String,
    whole: bool,
}

impl Axis {
    /// A linear axis from the smallest to the largest value.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let label = label.to_owned();
        Self { label, logarithmic: false, from: None, format: number, whole: false }
    }

    /// The same with a logarithmic scale; values must be above 0.
    #[must_use]
    pub fn logarithmic(self) -> Self {
        Self { logarithmic: true, ..self }
    }

    /// The same, starting at `from`.
    #[must_use]
    pub fn from(self, from: f64) -> Self {
        Self { from: Some(from), ..self }
    }

    /// The same for whole numbers, with ticks at no others.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// The same with another way to write its values.
    #[must_use]
    pub fn format(self, format: fn(f64) -> String) -> Self {
        Self { format, ..self }
    }

    /// A value as a place on a linear scale.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    fn tick(&self, place: f64) -> String {
        if self.whole && (place - place.round()).abs() > 1e-6 {
            return String::new();
        }
        (self.format)(if self.logarithmic { 10f64.powf(place) } else { place })
    }

    /// Ends of the scale around `values`, with room on both sides.
    fn range(&self, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.chain(self.from.map(|f| self.place(f))) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            return 0.0..1.0;
        }
        let room = if high > low { 0.06 * (high - low) } else { (0.1 * low.abs()).max(0.1) };
        let start = self.from.map_or(low - room, |f| self.place(f));
        start..high + room
    }
}

/// A number with as many digits as it needs.
fn number(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => return format!("{value:.1e}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Points that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    labels: Vec<String>,
    joined: bool,
    marked: bool,
}

impl Series {
    /// Points joined by a line.
    #[must_use]
    pub fn line(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points, labels: Vec::new(), joined: true, marked: true }
    }

    /// A line without markers, such as a limit.
    #[must_use]
    pub fn bare_line(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { marked: false, ..Self::line(name, points) }
    }

    /// Points without a line, each with a label of its own.
    #[must_use]
    pub fn points(name: &str, points: Vec<((f64, f64), String)>) -> Self {
        let (points, labels) = points.into_iter().unzip();
        Self { name: name.to_owned(), points, labels, joined: false, marked: true }
    }
}

/// A chart of points and lines. Values that are not finite are left out.
#[derive(Clone, Debug)]
pub struct Chart {
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

/// A chart's translation of values to pixels.
type Coordinates = Cartesian2d<RangedCoordf64, RangedCoordf64>;

/// Room at the left edge for the last letter of a tick, and at the right edge for half a tick.
const LEFT_MARGIN: i32 = 4;
const RIGHT_MARGIN: i32 = 28;

/// Height of the space for points and lines, in pixels.
const PLOT_HEIGHT: i32 = 260;

/// Height of ticks and label of the horizontal axis.
const X_HEIGHT: i32 = 28;

/// Length of the line in a legend.
const SAMPLE: i32 = 30;

impl Chart {
    /// A chart without series.
    #[must_use]
    pub fn new(x: Axis, y: Axis) -> Self {
        Self { x, y, series: Vec::new() }
    }

    /// Appends a series; the order decides how it looks.
    #[must_use]
    pub fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// The points of a series that can be shown, as places.
    fn places<'a>(&'a self, series: &'a Series) -> impl Iterator<Item = (usize, (f64, f64))> + 'a {
        let places = series.points.iter().map(|(x, y)| (self.x.place(*x), self.y.place(*y)));
        places.enumerate().filter(|(_, (x, y))| x.is_finite() && y.is_finite())
    }

    /// Legend entries: series, left end and line of each, and the number of lines.
    fn legend(&self, width: i32) -> (Vec<(usize, i32, i32)>, i32) {
        let (mut entries, mut x, mut line) = (Vec::new(), LEFT_MARGIN, 0);
        for (i, series) in self.series.iter().enumerate().filter(|(_, s)| !s.name.is_empty()) {
            let needed = SAMPLE + 6 + text::width(&series.name) + 14;
            if x > LEFT_MARGIN && x + needed > width {
                (x, line) = (LEFT_MARGIN, line + 1);
            }
            entries.push((i, x, line));
            x += needed;
        }
        let lines = if entries.is_empty() { 0 } else { line + 1 };
        (entries, lines)
    }

    fn draw_legend(&self, area: &Area<'_>, width: i32, top: i32) {
        for (i, x, line) in self.legend(width).0 {
            let (look, series) = (Look::new(i), &self.series[i]);
            let y = top + line * text::LINE + text::LINE / 2;
            if series.joined {
                look.line(area, &[(x, y), (x + SAMPLE, y)]);
            }
            if series.marked {
                look.marker(area, (x + SAMPLE / 2, y));
            }
            let room = width - x - SAMPLE - 6;
            let name = text::fit(&series.name, room);
            text::write(area, &name, (x + SAMPLE + 6, y), HPos::Left, Palette::INK);
        }
    }

    fn title_lines(&self, width: i32) -> i32 {
        i32::try_from(text::wrap(&self.y.label, width - LEFT_MARGIN).len()).unwrap_or(1)
    }

    fn x_lines(&self, width: i32) -> i32 {
        i32::try_from(text::wrap(&self.x.label, width - LEFT_MARGIN).len()).unwrap_or(1)
    }

    fn draw_series(&self, area: &Area<'_>, coordinates: &Coordinates) {
        let pixel = |place: (f64, f64)| coordinates.translate(&place);
        for (i, series) in self.series.iter().enumerate() {
            let pixels: Vec<Pixel> = self.places(series).map(|(_, p)| pixel(p)).collect();
            if series.joined && pixels.len() > 1 {
                Look::new(i).line(area, &pixels);
            }
            if series.marked {
                pixels.iter().for_each(|p| Look::new(i).marker(area, *p));
            }
        }
    }

    fn draw_labels(&self, area: &Area<'_>, coordinates: &Coordinates, frame: Rect) {
        let mut labelled: Vec<(Pixel, &str)> = Vec::new();
        for series in &self.series {
            for (i, place) in self.places(series) {
                if let Some(label) = series.labels.get(i) {
                    labelled.push((coordinates.translate(&place), label));
                }
            }
        }
        for (((x, y), label), rect) in labelled.iter().zip(place::labels(&labelled, frame)) {
            let middle = i32::midpoint(rect.top, rect.bottom);
            if (middle - y).abs() > text::LINE {
                let end = (*x).clamp(rect.left, rect.right);
                let edge = if middle > *y { rect.top } else { rect.bottom };
                let start = y + (edge - y).signum() * RADIUS;
                mark::thin(area, (*x, start), (end, edge), Palette::SOFT);
            }
            // Beside its point a label ends or starts there, whatever the reader's font makes of its width.
            let (at, align) = if rect.right <= *x { (rect.right, HPos::Right) } else { (rect.left, HPos::Left) };
            let label = text::fit(label, rect.right - rect.left);
            text::write(area, &label, (at, middle), align, Palette::INK);
        }
    }
}

impl Figure for Chart {
    fn height(&self, width: u32) -> u32 {
        let width = i32::try_from(width).unwrap_or(i32::MAX);
        let lines = self.title_lines(width) + self.legend(width).1 + self.x_lines(width);
        u32::try_from(lines * text::LINE + 12 + PLOT_HEIGHT + X_HEIGHT + 6).unwrap_or(0)
    }

    fn draw(&self, area: &Area<'_>) {
        let (width, height) = area.dim_in_pixel();
        let [width, height] = [width, height].map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let lines = text::paragraph(area, &self.y.label, (LEFT_MARGIN, text::LINE / 2), width - LEFT_MARGIN);
        let legend_top = lines * text::LINE + 4;
        self.draw_legend(area, width, legend_top);
        let top = legend_top + self.legend(width).1 * text::LINE + 8;
        let bottom = self.x_lines(width) * text::LINE;

        let all = || self.series.iter().flat_map(|s| self.places(s).map(|(_, p)| p));
        let (x, y) = (self.x.range(all().map(|p| p.0)), self.y.range(all().map(|p| p.1)));
        let widest = (0..=8).map(|i| self.y.tick(y.start + (y.end - y.start) * f64::from(i) / 8.0));
        let y_width = widest.map(|t| text::width(&t)).max().unwrap_or(0) + 14;
        let mut builder = ChartBuilder::on(area);
        builder
            .margin_top(top)
            .margin_bottom(bottom + 4)
            .margin_left(LEFT_MARGIN)
            .margin_right(RIGHT_MARGIN)
            .x_label_area_size(X_HEIGHT)
            .y_label_area_size(y_width);
        let mut chart = builder.build_cartesian_2d(x, y).expect(DRAWN);
        let ticks = usize::try_from((width - y_width) / 90).unwrap_or(2).max(2);
        let label = |horizontal| text::style(Palette::INK, horizontal);
        chart
            .configure_mesh()
            .x_labels(ticks)
            .y_labels(6)
            .x_label_formatter(&|v| self.x.tick(*v))
            .y_label_formatter(&|v| self.y.tick(*v))
            .x_label_style(label(HPos::Center).pos(plotters::style::text_anchor::Pos::default()))
            .y_label_style(label(HPos::Left).pos(plotters::style::text_anchor::Pos::default()))
            .axis_style(Palette::SOFT.stroke_width(1))
            .bold_line_style(Palette::GRID.stroke_width(1))
            .light_line_style(TRANSPARENT)
            .draw()
            .expect(DRAWN);
        let (xs, ys) = chart.plotting_area().get_pixel_range();
        let frame = Rect { left: xs.start, top: ys.start, right: width - 2, bottom: ys.end };
        let coordinates = chart.as_coord_spec();
        self.draw_series(area, coordinates);
        self.draw_labels(area, coordinates, frame);
        let x_label_at = (frame.left, height - bottom + text::LINE / 2 - 2);
        text::paragraph(area, &self.x.label, x_label_at, width - frame.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::svg;

    #[test]
    fn numbers_are_short() {
        let cases = [(22.0, "22"), (0.0, "0"), (0.25, "0.25"), (1234.0, "1234"), (0.004, "0.004")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 2.0)];
        let chart = Chart::new(Axis::new("x"), Axis::new("y")).with(Series::line("s", points));
        let text = svg(&chart, 360);
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn empty_and_single_points_can_be_drawn() {
        let axes = || (Axis::new("x").from(0.0), Axis::new("y").logarithmic());
        let (x, y) = axes();
        assert!(svg(&Chart::new(x, y), 360).starts_with("<svg"));
        let (x, y) = axes();
        let one = Series::points("s", vec![((5.0, 7.0), "only".to_owned())]);
        assert!(svg(&Chart::new(x, y).with(one), 360).contains("only"));
    }
}
