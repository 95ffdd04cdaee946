//! Second moments of a matrix's inputs, as far as they are known.

use std::ops::Range;

/// Spans of inputs, but the last, are multiples of so many long: who codes inputs in stripes of a divisor of it has no
/// stripe in two spans.
pub const SPAN_STEP: usize = 64;

/// E[x x^T] of inputs x, or any multiple of it, of which the entries within spans of consecutive inputs are
/// known: one span for all, or several where the whole moment would be too large. Inputs of different
/// spans count as uncorrelated.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    d: usize,
    /// Inputs of a span; the last may have fewer.
    width: usize,
    spans: Vec<MomentSpan>,
}

/// The moment of consecutive inputs: the lower triangle of a symmetric matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct MomentSpan {
    start: usize,
    n: usize,
    /// Row i has the entries (i, 0) to (i, i).
    packed: Vec<f32>,
}

impl Moment {
    /// The whole moment of `d` inputs.
    ///
    /// # Shapes
    /// `values`: [d, d], symmetric.
    ///
    /// # Panics
    /// If `values` has another size.
    #[must_use]
    pub fn whole(values: &[f32], d: usize) -> Self {
        assert_eq!(Some(values.len()), d.checked_mul(d), "a moment of {d} inputs");
        Self::from_fn(d, d, |i, j| values[i * d + j])
    }

    /// The moment of `d` inputs in spans of about `width`, whose entry (i, j), j <= i, is `entry(i, j)`.
    #[must_use]
    pub fn from_fn(d: usize, width: usize, entry: impl Fn(usize, usize) -> f32) -> Self {
        Self::of_spans(d, width, |inputs| {
            let row = |i: usize| (inputs.start..=i).map(move |j| (i, j));
            inputs.clone().flat_map(row).map(|(i, j)| entry(i, j)).collect()
        })
    }

    /// The moment of `d` inputs in spans of about `width`; `entries` gives those [n, n] of a span of n inputs.
    ///
    /// # Panics
    /// If a span's entries have another size.
    #[must_use]
    pub fn in_spans(
        d: usize,
        width: usize,
        mut entries: impl FnMut(Range<usize>) -> Vec<f32>,
    ) -> Self {
        Self::of_spans(d, width, |inputs| {
            let n = inputs.len();
            let entries = entries(inputs);
            assert_eq!(Some(entries.len()), n.checked_mul(n), "a span of {n} inputs");
            (0..n).flat_map(|i| &entries[i * n..][..=i]).copied().collect()
        })
    }

    /// `packed` gives the triangle of a span.
    fn of_spans(d: usize, width: usize, mut packed: impl FnMut(Range<usize>) -> Vec<f32>) -> Self {
        let width = width.next_multiple_of(SPAN_STEP);
        let span = |start: usize| {
            let n = width.min(d - start);
            MomentSpan { start, n, packed: packed(start..start + n) }
        };
        Self { d, width, spans: (0..d).step_by(width).map(span).collect() }
    }

    /// Number of inputs.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// Whether all entries are finite and none of the diagonal is negative.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.spans.iter().all(|span| {
            span.packed.iter().all(|v| v.is_finite()) && span.diagonal().all(|v| v >= 0.0)
        })
    }

    /// Mean of the diagonal.
    pub(crate) fn mean_square(&self) -> f64 {
        let trace = |span: &MomentSpan| span.diagonal().map(f64::from).sum::<f64>();
        self.spans.iter().map(trace).sum::<f64>() / self.d as f64
    }

    /// Inputs of a span; the last may have fewer.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn spans(&self) -> &[MomentSpan] {
        &self.spans
    }
}

impl MomentSpan {
    /// First input.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Number of inputs.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// The entries (i, 0) to (i, i), where inputs count from the first of the span.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.packed[i * (i + 1) / 2..][..=i]
    }

    fn diagonal(&self) -> impl Iterator<Item = f32> {
        (0..self.n).map(|i| self.packed[i * (i + 1) / 2 + i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_all_inputs_once() {
        let moment = Moment::in_spans(200, 65, |r| vec![r.start as f32; r.len() * r.len()]);
        let spans: Vec<_> =
            moment.spans().iter().map(|s| (s.start(), s.n(), s.row(3)[2])).collect();
        assert_eq!(spans, [(0, 128, 0.0), (128, 72, 128.0)]);
        assert_eq!(Moment::whole(&[1.0; 9], 3).spans().len(), 1);
    }

    #[test]
    fn entries_are_the_same_however_they_come() {
        let entry = |i: usize, j: usize| (i.min(j) * 1000 + i.max(j)) as f32;
        let (d, width) = (150, 64);
        let by_entry = Moment::from_fn(d, width, entry);
        let by_span = Moment::in_spans(d, width, |r| {
            r.clone().flat_map(|i| r.clone().map(move |j| entry(i, j))).collect()
        });
        assert_eq!(by_entry, by_span);
        assert_eq!(by_entry.spans()[1].row(2), [entry(66, 64), entry(66, 65), entry(66, 66)]);
        let values: Vec<f32> = (0..9).map(|at| entry(at / 3, at % 3)).collect();
        assert_eq!(Moment::whole(&values, 3), Moment::from_fn(3, 3, entry));
    }

    #[test]
    fn what_no_moment_has_is_not_usable() {
        assert!(Moment::whole(&[1.0, -0.5, -0.5, 0.0], 2).is_usable());
        for bad in [[1.0, f32::NAN, f32::NAN, 1.0], [-1.0, 0.0, 0.0, 1.0]] {
            assert!(!Moment::whole(&bad, 2).is_usable());
        }
    }
}
