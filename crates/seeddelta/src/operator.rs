//! The product with a vector, without ever building W0.

use std::ops::Range;

use codec::MatrixShape;

use crate::SeedDelta;
use crate::circulant::CirculantFft;
use crate::part::Part;

/// A [`SeedDelta`] that can be multiplied with vectors.
///
/// The product has two steps, so that threads can share it: what all rows need of the input
/// ([`Self::prepare_low_rank`], [`Self::prepare_circulant`]), then any range of rows of the base
/// ([`Self::base_rows`]). The delta is added to these. [`Self::apply`] does all of it.
pub struct Operator {
    model: SeedDelta,
    circulant: Option<CirculantFft>,
    rank: usize,
}

impl Operator {
    pub(crate) fn new(model: SeedDelta) -> Self {
        let circulant = model.parts().iter().find_map(|part| match part {
            Part::Circulant(c) => Some(CirculantFft::new(c)),
            _ => None,
        });
        let rank = model.parts().iter().find_map(|part| match part {
            Part::LowRank(p) => Some(p.rank),
            _ => None,
        });
        Self { model, circulant, rank: rank.unwrap_or(0) }
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.model.shape()
    }

    /// Whether there is a base at all.
    #[must_use]
    pub fn has_base(&self) -> bool {
        !self.model.parts().is_empty()
    }

    /// Rank of the low-rank part, 0 without one: numbers that [`Self::prepare_low_rank`] makes.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Numbers that [`Self::prepare_circulant`] makes: d_out, or 0 without a circulant part.
    #[must_use]
    pub fn n_circulant(&self) -> usize {
        if self.circulant.is_some() { self.shape().d_out } else { 0 }
    }

    /// Number `j` of the low-rank part's inner product: `v[j] . x`.
    ///
    /// # Panics
    /// If `j` is not below [`Self::rank`] or x is not `[d_in]`.
    #[must_use]
    pub fn prepare_low_rank(&self, x: &[f32], j: usize) -> f32 {
        assert!(j < self.rank && x.len() == self.shape().d_in);
        let low = self.model.parts().iter().find_map(|part| match part {
            Part::LowRank(p) => Some(p),
            _ => None,
        });
        low.map_or(0.0, |low| dot(&low.v[j * x.len()..][..x.len()], x))
    }

    /// The circulant part's product with x `[d_in]`, all of it: an FFT has no rows.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn prepare_circulant(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (self.shape().d_in, self.n_circulant()));
        out.fill(0.0);
        if let Some(fft) = &self.circulant {
            fft.add_product(x, out);
        }
    }

    /// `y = diag(row_scale) W0 x` for `rows`, from what was prepared of the whole x.
    ///
    /// # Shapes
    /// `x` `[d_in]`, `low_rank` `[rank]`, `circulant` `[n_circulant]`, `y` `[rows]`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn base_rows(
        &self,
        rows: Range<usize>,
        x: &[f32],
        low_rank: &[f32],
        circulant: &[f32],
        y: &mut [f32],
    ) {
        let shape = self.shape();
        assert!(rows.end <= shape.d_out && rows.len() == y.len() && x.len() == shape.d_in);
        assert_eq!((low_rank.len(), circulant.len()), (self.rank, self.n_circulant()));
        y.fill(0.0);
        for part in self.model.parts() {
            match part {
                Part::Identity(p) => p.add_product(rows.clone(), x, y),
                Part::Diagonal(p) | Part::Block(p) => p.add_product(rows.clone(), x, y),
                Part::LowRank(p) => {
                    let us = p.u[rows.start * p.rank..].chunks(p.rank);
                    y.iter_mut().zip(us).for_each(|(y, u)| *y += dot(u, low_rank));
                }
                Part::Circulant(_) => {
                    y.iter_mut().zip(&circulant[rows.clone()]).for_each(|(y, c)| *y += c);
                }
            }
        }
        if let Some(scale) = self.model.row_scale() {
            y.iter_mut().zip(&scale[rows]).for_each(|(y, g)| *y *= g);
        }
    }

    /// `y = W^ x`, with `x` `[d_in]` and `y` `[d_out]`.
    ///
    /// Costs O(d_in + d_out) for identity and diagonal, b times as much for blocks of b, O(k (d_in + d_out))
    /// for rank k, O(n log n) for a circulant, and K per output for the delta.
    ///
    /// # Panics
    /// If a length does not fit the shape.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let low_rank: Vec<f32> = (0..self.rank).map(|j| self.prepare_low_rank(x, j)).collect();
        let mut circulant = vec![0.0; self.n_circulant()];
        self.prepare_circulant(x, &mut circulant);
        self.base_rows(0..self.shape().d_out, x, &low_rank, &circulant, y);
        self.model.delta().add_product(x, y);
    }
}

/// Lanes of partial sums that the compiler keeps in one register.
const LANES: usize = 8;

/// Sum of products in lanes: a fixed order, whatever the processor.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
