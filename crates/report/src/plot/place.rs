//! Finding room for labels beside points.

use super::mark::{Pixel, RADIUS};
use super::text;

/// A rectangle in pixels: left, top, right, bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rect {
    pub left: i32,
    pub top: i32,
    pub right: i32,
    pub bottom: i32,
}

impl Rect {
    fn around(at: Pixel, radius: i32) -> Self {
        let ((x, y), r) = (at, radius);
        Self { left: x - r, top: y - r, right: x + r, bottom: y + r }
    }

    fn overlap(self, other: Self) -> i64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        i64::from(width.max(0)) * i64::from(height.max(0))
    }

    fn contains(self, other: Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && self.right >= other.right
            && self.bottom >= other.bottom
    }
}

/// Distances from the point at which a label is tried, in lines of text.
const RINGS: i32 = 14;

/// A rectangle for the label of every point: inside of `frame`, over no marker and no other label where that
/// is possible, as near as possible.
pub(crate) fn labels(points: &[(Pixel, &str)], frame: Rect) -> Vec<Rect> {
    let markers: Vec<Rect> = points.iter().map(|(at, _)| Rect::around(*at, RADIUS + 2)).collect();
    let mut placed: Vec<Rect> = Vec::with_capacity(points.len());
    for (at, label) in points {
        let cost = |candidate: &Rect| -> i64 {
            markers.iter().chain(&placed).map(|other| candidate.overlap(*other)).sum()
        };
        let free = candidates(*at, text::width(label), frame);
        let best = free.into_iter().min_by_key(cost);
        placed.push(best.unwrap_or(Rect::around(*at, 0)));
    }
    placed
}

/// Places for a label of `width` pixels, the nearest first.
fn candidates(at: Pixel, width: i32, frame: Rect) -> Vec<Rect> {
    let (x, y) = at;
    let width = width.min(frame.right - frame.left);
    let mut all = Vec::new();
    for ring in 0..RINGS {
        let gap = RADIUS + 4;
        let dy = ring * text::LINE;
        let lefts = [x + gap, x - gap - width, x - width / 2];
        let offsets = if ring == 0 { vec![0] } else { vec![-dy, dy] };
        for offset in offsets {
            for left in lefts {
                // On the point's own line a centred label would cover it.
                if ring == 0 && left == lefts[2] {
                    continue;
                }
                let left = left.clamp(frame.left, frame.right - width);
                let top = y + offset - text::LINE / 2;
                let rect = Rect { left, top, right: left + width, bottom: top + text::LINE };
                if frame.contains(rect) {
                    all.push(rect);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Rect = Rect { left: 40, top: 10, right: 340, bottom: 260 };

    #[test]
    fn labels_stay_inside_and_apart() {
        let names = ["base", "statecells", "Q5_K_M", "Q4_K_M FFN only", "Q3_K_M"];
        let points: Vec<(Pixel, &str)> = names
            .iter()
            .enumerate()
            .map(|(i, name)| ((330 - 3 * i32::try_from(i).unwrap(), 100), *name))
            .collect();
        let rects = labels(&points, FRAME);
        for (i, a) in rects.iter().enumerate() {
            assert!(FRAME.contains(*a), "{a:?}");
            assert!(rects[..i].iter().all(|b| a.overlap(*b) == 0), "{rects:?}");
        }
    }
}
