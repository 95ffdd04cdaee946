//! Second moments of a matrix's inputs, as far as they are known.

use std::ops::Range;

use rayon::prelude::*;

use super::search::STRIPE_INPUTS;

/// E[x x^T] of inputs x, or any multiple of it, of which the entries within spans of consecutive inputs are
/// known: one span for all, or several where the whole moment would be too large. Inputs of different
/// spans count as uncorrelated.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    d: usize,
    /// Inputs of a span; the last may have fewer.
    width: usize,
    /// For each span of n inputs the entries [n, n].
    spans: Vec<Vec<f32>>,
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
    pub fn whole(values: Vec<f32>, d: usize) -> Self {
        let mut values = Some(values);
        Self::in_spans(d, d, |_| values.take().expect("there is one span"))
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
        // Errors are handed on from stripe to stripe, so no stripe lies in two spans.
        let width = width.next_multiple_of(STRIPE_INPUTS);
        let span = |start: usize| {
            let n = width.min(d - start);
            let entries = entries(start..start + n);
            assert_eq!(Some(entries.len()), n.checked_mul(n), "a span of {n} inputs");
            entries
        };
        Self { d, width, spans: (0..d).step_by(width).map(span).collect() }
    }

    /// Number of inputs.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// `(1 - share) H + share diag(H)` for this moment H.
    #[must_use]
    pub fn shrunk(&self, share: f64) -> Self {
        let keep = (1.0 - share) as f32;
        let shrink = |entries: &Vec<f32>| {
            let mut out: Vec<f32> = entries.par_iter().map(|v| keep * v).collect();
            let n = out.len().isqrt();
            (0..n).for_each(|i| out[i * n + i] = entries[i * n + i]);
            out
        };
        Self { spans: self.spans.iter().map(shrink).collect(), ..*self }
    }

    /// Inputs of a span.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// First input, number of inputs and entries of every span.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (usize, usize, &[f32])> {
        let starts = (0..self.d).step_by(self.width);
        starts.zip(&self.spans).map(|(start, h)| (start, h.len().isqrt(), h.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_all_inputs_once() {
        let moment = Moment::in_spans(200, 65, |r| vec![r.start as f32; r.len() * r.len()]);
        let spans: Vec<_> = moment.spans().map(|(start, n, e)| (start, n, e[0])).collect();
        assert_eq!(spans, [(0, 128, 0.0), (128, 72, 128.0)]);
        assert_eq!(Moment::whole(vec![1.0; 9], 3).spans().count(), 1);
    }

    #[test]
    fn shrinking_keeps_the_diagonal() {
        let moment = Moment::whole(vec![4.0, 2.0, 2.0, 3.0], 2).shrunk(0.25);
        assert_eq!(moment, Moment::whole(vec![4.0, 1.5, 1.5, 3.0], 2));
    }
}
