//! Sparse corrections in coordinate form (COO): a few weights of a matrix corrected one by one.
//!
//! StateCells keeps its outliers this way and SeedDelta its delta. The entries are the same, only the
//! [`Layout`] of the tensors differs. Values are F16 and are *added* to the decoded (and scaled)
//! weight at their position.

use std::ops::Range;

use format::coo::{Layout, ascending, integers};
use format::{
    CodecError, ElementType, MatrixShape, Sidecar, checked_sidecar, f16_clamped, find_sidecar,
};
use half::f16;
use rayon::prelude::*;

mod select;
#[cfg(test)]
mod tests;

use select::Score;

/// Corrections of single weights of a [d_in, d_out] matrix.
///
/// Positions are flat (`row * d_in + column`), strictly ascending and in range; values are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Coo {
    shape: MatrixShape,
    positions: Vec<usize>,
    values: Vec<f16>,
}

impl Coo {
    /// No correction at all.
    #[must_use]
    pub fn empty(shape: MatrixShape) -> Self {
        Self { shape, positions: Vec::new(), values: Vec::new() }
    }

    /// The `n` entries of `residual` with the largest `|r|`, or `|r| * sqrt(h)` with `importance` h.
    ///
    /// Of equal scores the lower position wins. `n` above the number of weights takes them all.
    /// Takes time linear in the matrix and memory for the entries only.
    ///
    /// # Shapes
    /// `residual`: [d_in, d_out]; `importance`: `[d_in]`.
    ///
    /// # Errors
    /// [`CodecError::NonFinite`] if a residual is not finite.
    ///
    /// # Panics
    /// If a length does not fit `shape`.
    pub fn largest(
        residual: &[f32],
        shape: MatrixShape,
        n: usize,
        importance: Option<&[f32]>,
    ) -> Result<Self, CodecError> {
        let score = Score::new(residual, shape, importance)?;
        let n = n.min(residual.len());
        if n == 0 {
            return Ok(Self::empty(shape));
        }
        let (threshold, mut n_ties) = score.nth_largest(n);
        // Rows come back in order, so ties are handed out from the lowest position on.
        let per_row: Vec<Vec<(usize, bool)>> = (0..shape.d_out)
            .into_par_iter()
            .map(|row| {
                let at = |column| (row * shape.d_in + column, score.bits(row, column));
                let kept = (0..shape.d_in).map(at).filter(|&(_, bits)| bits >= threshold);
                kept.map(|(position, bits)| (position, bits == threshold)).collect()
            })
            .collect();
        let mut positions = Vec::with_capacity(n);
        for (position, tie) in per_row.into_iter().flatten() {
            if tie && n_ties == 0 {
                continue;
            }
            n_ties -= usize::from(tie);
            positions.push(position);
        }
        Ok(Self::at(residual, shape, positions))
    }

    /// In every row the `k` entries with the largest `|r|`, or `|r| * sqrt(h)` with `importance` h.
    ///
    /// Of equal scores the lower column wins. Every row has exactly `min(k, d_in)` entries, some of
    /// value 0 where a row has fewer residuals. Shapes, errors and panics as for [`Self::largest`].
    ///
    /// # Errors
    /// [`CodecError::NonFinite`] if a residual is not finite.
    pub fn largest_per_row(
        residual: &[f32],
        shape: MatrixShape,
        k: usize,
        importance: Option<&[f32]>,
    ) -> Result<Self, CodecError> {
        let score = Score::new(residual, shape, importance)?;
        let k = k.min(shape.d_in);
        if k == 0 {
            return Ok(Self::empty(shape));
        }
        let per_row: Vec<Vec<usize>> = (0..shape.d_out)
            .into_par_iter()
            .map(|row| {
                let mut keys: Vec<(u32, usize)> =
                    (0..shape.d_in).map(|c| (!score.bits(row, c), c)).collect();
                keys.select_nth_unstable(k - 1);
                keys.truncate(k);
                let mut columns: Vec<usize> = keys.into_iter().map(|(_, column)| column).collect();
                columns.sort_unstable();
                columns
            })
            .collect();
        let positions = (0..).zip(per_row).flat_map(|(row, columns): (usize, Vec<usize>)| {
            columns.into_iter().map(move |column| row * shape.d_in + column)
        });
        Ok(Self::at(residual, shape, positions.collect()))
    }

    /// The entries at `positions` (strictly ascending), with values from `residual`.
    fn at(residual: &[f32], shape: MatrixShape, positions: Vec<usize>) -> Self {
        let mut coo = Self { shape, values: vec![f16::ZERO; positions.len()], positions };
        coo.refit(residual);
        coo
    }

    /// Keeps the positions and takes their values from `residual` `[d_in, d_out]` (source minus decoded).
    ///
    /// Values beyond the range of F16 are clamped to +-65504, the nearest it holds, which still lessens
    /// the error; NaN becomes 0.
    ///
    /// # Panics
    /// If the length does not fit the shape.
    pub fn refit(&mut self, residual: &[f32]) {
        assert_eq!(residual.len(), self.shape.n_weights());
        for (value, &position) in self.values.iter_mut().zip(&self.positions) {
            *value = f16_clamped(residual[position]);
        }
    }

    /// Keeps the positions and takes `values`, one per entry, clamped as by [`Self::refit`].
    ///
    /// # Panics
    /// If there are more or fewer values than entries.
    pub fn set_values(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.values.len());
        self.values = values.iter().map(|v| f16_clamped(*v)).collect();
    }

    /// Shape of the corrected matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Flat positions `row * d_in + column`, strictly ascending.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Values, in the order of [`Self::positions`].
    #[must_use]
    pub fn values(&self) -> &[f16] {
        &self.values
    }

    /// The entries (row, column, value) of `rows`, in order.
    pub fn entries(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let d_in = self.shape.d_in;
        let first_of = |row: usize| self.positions.partition_point(|&p| p / d_in < row);
        let range = first_of(rows.start)..first_of(rows.end).max(first_of(rows.start));
        self.positions[range.clone()]
            .iter()
            .zip(&self.values[range])
            .map(move |(&p, v)| (p / d_in, p % d_in, v.to_f32()))
    }

    /// Adds the corrections to the dense matrix `weights` [d_in, d_out].
    ///
    /// # Panics
    /// If the length does not fit the shape.
    pub fn add_to(&self, weights: &mut [f32]) {
        assert_eq!(weights.len(), self.shape.n_weights());
        for (&position, value) in self.positions.iter().zip(&self.values) {
            weights[position] += value.to_f32();
        }
    }

    /// Adds the corrections' part of the product with `x` `[d_in]` to `y` `[d_out]`.
    ///
    /// # Panics
    /// If a length does not fit the shape.
    pub fn add_product(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!((x.len(), y.len()), (self.shape.d_in, self.shape.d_out));
        for (row, column, value) in self.entries(0..self.shape.d_out) {
            y[row] += value * x[column];
        }
    }

    /// The entries as tensors of `layout`; none if there are no entries.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if positions do not fit I32, or [`Layout::PerRow`] is asked for and the
    /// rows do not all have the same number of entries.
    pub fn to_sidecars(&self, layout: Layout) -> Result<Vec<Sidecar>, CodecError> {
        let n = match layout {
            Layout::Flat => self.len(),
            Layout::PerRow => self.entries_per_row()?,
        };
        let specs = layout.specs(self.shape, n)?;
        let [idx, val] = specs.as_slice() else { return Ok(Vec::new()) };
        let indices = self.positions.iter().map(|&p| match layout {
            Layout::Flat => p,
            Layout::PerRow => p % self.shape.d_in,
        });
        // `specs` made sure that the largest index fits the type.
        let idx = match idx.element_type {
            ElementType::I16 => {
                let indices: Vec<i16> = indices.map(|i| i as i16).collect();
                Sidecar::from_i16(idx.suffix, &idx.dims, &indices)
            }
            _ => {
                let indices: Vec<i32> = indices.map(|i| i as i32).collect();
                Sidecar::from_i32(idx.suffix, &idx.dims, &indices)
            }
        };
        Ok(vec![idx, Sidecar::from_f16(val.suffix, &val.dims, &self.values)])
    }

    /// Reads the tensors of `layout`; `None` if neither is there.
    ///
    /// The tensors may come from an untrusted file: type, shape, size, order and range of the indices
    /// and finiteness of the values are checked.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] naming the tensor and the first offending entry.
    pub fn from_sidecars(
        layout: Layout,
        sidecars: &[Sidecar],
        shape: MatrixShape,
    ) -> Result<Option<Self>, CodecError> {
        let present = |suffix| find_sidecar(sidecars, suffix);
        let n = match (present(layout.idx_suffix()), present(layout.val_suffix())) {
            (None, None) => return Ok(None),
            (Some(idx), _) => idx.spec.dims.first().copied().unwrap_or(0),
            (None, Some(_)) => return Err(layout.bad_idx("missing, though its values are there")),
        };
        let specs = layout.specs(shape, n)?;
        let [idx, val] = specs.as_slice() else { return Err(layout.bad_idx("no entries")) };
        let indices = integers(checked_sidecar(sidecars, idx)?);
        let values = checked_sidecar(sidecars, val)?.to_f16().unwrap_or_default();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let reason = format!("entry {i} is {}", values[i]);
            return Err(CodecError::Sidecar { suffix: layout.val_suffix(), reason });
        }
        let positions = match layout {
            Layout::Flat => ascending(layout, &indices, 0, shape.n_weights())?,
            Layout::PerRow => {
                let mut positions = Vec::with_capacity(indices.len());
                for (row, columns) in indices.chunks(n).enumerate() {
                    let columns = ascending(layout, columns, row * n, shape.d_in)?;
                    positions.extend(columns.into_iter().map(|c| row * shape.d_in + c));
                }
                positions
            }
        };
        Ok(Some(Self { shape, positions, values }))
    }

    /// The number of entries that every row has.
    fn entries_per_row(&self) -> Result<usize, CodecError> {
        let k = self.len().checked_div(self.shape.d_out).unwrap_or(0);
        let regular = self.len() == k * self.shape.d_out
            && self.positions.iter().enumerate().all(|(i, p)| p / self.shape.d_in == i / k);
        if regular {
            Ok(k)
        } else {
            Err(Layout::PerRow.bad_idx("rows have different numbers of entries"))
        }
    }
}

/// Number of entries that make up `share` (0 to 1) of a matrix, rounded to the nearest.
#[must_use]
pub fn entries_for_share(shape: MatrixShape, share: f64) -> usize {
    let n = shape.n_weights();
    ((n as f64 * share.clamp(0.0, 1.0)).round() as usize).min(n)
}
