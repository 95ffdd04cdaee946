//! The factor of one span of a second moment, and how it lies in memory.

use std::ops::Range;

use rayon::prelude::*;

use super::{Drawn, PAD};
use crate::SPAN_STEP;
use crate::linalg::LowerTiles;
use crate::moment::MomentSpan;

/// Spans of up to so many inputs are factored in F64.
pub(super) const IN_F64: usize = 4096;
/// Rows whose columns begin at the same place in memory: those of a stripe, whose errors are handed on together.
const BAND: usize = SPAN_STEP;

/// The factor of a span.
#[derive(Debug)]
pub(super) struct Factor {
    /// First input.
    pub(super) start: usize,
    /// Number of inputs.
    pub(super) n: usize,
    /// Added to the diagonal of H.
    pub(super) added: f64,
    /// R by bands of [`BAND`] rows, whose rows begin at the diagonal, see [`Factor::row`].
    values: Vec<f32>,
}

impl Factor {
    pub(super) fn new(span: &MomentSpan, drawn: Drawn, damping: f64) -> Self {
        let (start, n) = (span.start(), span.n());
        let mut added = damping;
        loop {
            if let Some(values) = upper_factor(span, drawn, added) {
                return Self { start, n, added, values };
            }
            added = (added * 10.0).max(1e-6);
        }
    }

    /// Inputs with padding.
    #[inline(always)]
    pub(super) fn padded(&self) -> usize {
        self.n.next_multiple_of(PAD)
    }

    /// Columns `columns` of row `i` of R, with padding; none is left of the band's diagonal block.
    #[inline(always)]
    pub(super) fn row(&self, i: usize, columns: Range<usize>) -> &[f32] {
        let left = i / BAND * BAND;
        let (band, width) = self.band(i / BAND);
        &band[i % BAND * width..][..width][columns.start - left..columns.end - left]
    }

    /// The rows of band `band` from its diagonal block on, and how long they are.
    #[inline(always)]
    pub(super) fn band(&self, band: usize) -> (&[f32], usize) {
        let padded = self.padded();
        let width = padded - band * BAND;
        (&self.values[band_start(padded, band)..][..width * BAND.min(width)], width)
    }

    /// R transposed without padding, [n, n].
    pub(super) fn transposed(&self) -> Vec<f32> {
        let n = self.n;
        let mut out = vec![0.0; n * n];
        // Rows of R are contiguous: some columns at a time use whole cache lines.
        out.par_chunks_mut(n * BAND).enumerate().for_each(|(band, columns)| {
            let first = band * BAND;
            let width = columns.len() / n;
            for i in 0..first + width {
                let from = first.max(i);
                let row = self.row(i, from..first + width);
                for (v, column) in row.iter().zip(columns.chunks_exact_mut(n).skip(from - first)) {
                    column[i] = *v;
                }
            }
        });
        out
    }
}

/// Where the band `band` of a factor with `padded` columns begins: each has [`BAND`] columns less than the one before.
#[inline(always)]
fn band_start(padded: usize, band: usize) -> usize {
    BAND * band * padded - BAND * BAND * band * band.saturating_sub(1) / 2
}

/// R of `span + damping = R R^T` by bands, see [`Factor`]; `None` if that is not positive definite. It is the Cholesky
/// factor of the matrix with rows and columns reversed.
///
/// That of a large span is made in F32, in half the time: what the sums of products lose is a small part of any damping that is
/// worth its name. Where F32 finds no positive definite matrix F64 may.
fn upper_factor(span: &MomentSpan, drawn: Drawn, damping: f64) -> Option<Vec<f32>> {
    let d = span.n();
    let entry = |i: usize, j: usize| {
        let v = f64::from(drawn.entry(span, (d - 1 - j, d - 1 - i)));
        if i == j { v + damping } else { v }
    };
    let single = if d > IN_F64 { LowerTiles::cholesky(d, |i, j| entry(i, j) as f32) } else { None };
    match single {
        Some(reversed) => Some(by_bands(d, |i, j| *reversed.get(i, j))),
        None => {
            let reversed = LowerTiles::cholesky(d, entry)?;
            Some(by_bands(d, |i, j| *reversed.get(i, j) as f32))
        }
    }
}

/// R by bands from the factor of the matrix with rows and columns reversed.
fn by_bands(d: usize, reversed: impl Fn(usize, usize) -> f32 + Sync) -> Vec<f32> {
    let padded = d.next_multiple_of(PAD);
    let length = |first: usize| BAND.min(padded - first) * (padded - first);
    let starts = (0..padded).step_by(BAND);
    let mut values = vec![0.0f32; starts.clone().map(length).sum()];
    let mut rest = values.as_mut_slice();
    let bands: Vec<(usize, &mut [f32])> = starts
        .map(|first| {
            let band;
            (band, rest) = std::mem::take(&mut rest).split_at_mut(length(first));
            (first, band)
        })
        .collect();
    bands.into_par_iter().for_each(|(first, band)| {
        // Rows of R lie across the columns in memory: some of them at a time use whole cache lines.
        for j in first..d {
            for i in first..(first + BAND).min(j + 1) {
                band[(i - first) * (padded - first) + j - first] = reversed(d - 1 - i, d - 1 - j);
            }
        }
    });
    values
}
