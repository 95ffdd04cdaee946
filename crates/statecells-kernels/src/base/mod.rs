//! The product with the structured base of a `seeddelta` matrix, without ever building W0.

mod circulant;

use std::ops::Range;

use circulant::CirculantFft;
use format::MatrixShape;
use format::seeddelta::{Base, Part};

/// A [`Base`] that can be multiplied with vectors.
///
/// The product has two steps, so that threads can share it: what all rows need of the input
/// ([`Self::prepare_low_rank`], [`Self::prepare_circulant`]), then any range of rows
/// ([`Self::rows`]). Costs O(d_in + d_out) for identity and diagonal, b times as much for blocks of b,
/// O(k (d_in + d_out)) for rank k, O(n log n) for a circulant.
pub struct BaseOperator {
    base: Base,
    circulant: Option<CirculantFft>,
    rank: usize,
}

impl BaseOperator {
    /// Plans the FFT of a circulant once.
    #[must_use]
    pub fn new(base: Base) -> Self {
        let circulant = base.parts.iter().find_map(|part| match part {
            Part::Circulant(c) => Some(CirculantFft::new(c)),
            _ => None,
        });
        let rank = base.parts.iter().find_map(|part| match part {
            Part::LowRank(p) => Some(p.rank),
            _ => None,
        });
        Self { base, circulant, rank: rank.unwrap_or(0) }
    }

    /// Shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.base.shape
    }

    /// Whether there is a base at all.
    #[must_use]
    pub fn has_base(&self) -> bool {
        !self.base.parts.is_empty()
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
        let low = self.base.parts.iter().find_map(|part| match part {
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
    pub fn rows(
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
        for part in &self.base.parts {
            match part {
                Part::Identity(p) => {
                    for (row, y) in rows.clone().zip(&mut *y) {
                        p.tiling.for_row(row, |columns, _| *y += p.scale * x[columns.start]);
                    }
                }
                Part::Diagonal(p) | Part::Block(p) => {
                    for (row, y) in rows.clone().zip(&mut *y) {
                        p.tiling.for_row(row, |columns, start| {
                            let values = &p.values[start..][..columns.len()];
                            *y += x[columns].iter().zip(values).map(|(x, v)| x * v).sum::<f32>();
                        });
                    }
                }
                Part::LowRank(p) => {
                    let us = p.u[rows.start * p.rank..].chunks(p.rank);
                    y.iter_mut().zip(us).for_each(|(y, u)| *y += dot(u, low_rank));
                }
                Part::Circulant(_) => {
                    y.iter_mut().zip(&circulant[rows.clone()]).for_each(|(y, c)| *y += c);
                }
            }
        }
        if let Some(scale) = &self.base.row_scale {
            y.iter_mut().zip(&scale[rows]).for_each(|(y, g)| *y *= g);
        }
    }

    /// `y = diag(row_scale) W0 x`, with `x` `[d_in]` and `y` `[d_out]`: both steps.
    ///
    /// # Panics
    /// If a length does not fit the shape.
    pub fn product(&self, x: &[f32], y: &mut [f32]) {
        let low_rank: Vec<f32> = (0..self.rank).map(|j| self.prepare_low_rank(x, j)).collect();
        let mut circulant = vec![0.0; self.n_circulant()];
        self.prepare_circulant(x, &mut circulant);
        self.rows(0..self.shape().d_out, x, &low_rank, &circulant, y);
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
