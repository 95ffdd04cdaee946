//! The fit of a low-rank base: truncated singular value decomposition.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, SvdError, svd, svd_scratch};
use faer::{Mat, Par};
use format::MatrixShape;
use format::seeddelta::LowRank;
use rayon::prelude::*;

use crate::weights::Weights;

/// Nearest matrix of rank `rank`.
///
/// With U the first left singular vectors of `A = W diag(sqrt(h))`, the best approximation of A is
/// `U U^T A` (Eckart and Young 1936), so that of W in the weighted norm is `U U^T W`: no division by
/// sqrt(h), and inputs of weight 0 get the projection too. A gain divides the rows of U afterwards,
/// since diag(g) W0 has the same rank.
pub(crate) fn fit(
    wanted: &[f32],
    shape: MatrixShape,
    rank: usize,
    weights: &Weights<'_>,
) -> Result<LowRank, SvdError> {
    let left = left_singular_vectors(wanted, shape, rank, weights.importance)?;
    let mut base =
        LowRank { rank, u: vec![0.0; rank * shape.d_out], v: vec![0.0; shape.d_in * rank] };
    let scales: Vec<f64> = base
        .v
        .par_chunks_mut(shape.d_in)
        .zip(&left)
        .map(|(v, u)| project(wanted, shape, u, v))
        .collect();
    for (r, row) in base.u.chunks_mut(rank).enumerate() {
        let inverse = f64::from(weights.inverse_gain(r));
        for ((value, u), scale) in row.iter_mut().zip(&left).zip(&scales) {
            *value = (u[r] * scale * inverse) as f32;
        }
    }
    Ok(base)
}

/// Writes `u^T W / sqrt(s)` to `v` and returns sqrt(s), s = |u^T W|: both factors get the same share of
/// the singular value, so that neither leaves the range of F16.
fn project(w: &[f32], shape: MatrixShape, u: &[f64], v: &mut [f32]) -> f64 {
    let mut sum = vec![0.0f64; shape.d_in];
    for (row, &u) in w.chunks(shape.d_in).zip(u) {
        sum.iter_mut().zip(row).for_each(|(sum, &w)| *sum += u * f64::from(w));
    }
    let scale = sum.iter().map(|s| s * s).sum::<f64>().sqrt().sqrt();
    if scale > 0.0 {
        v.iter_mut().zip(&sum).for_each(|(v, s)| *v = (s / scale) as f32);
    }
    scale
}

/// The first `rank` left singular vectors of `W diag(sqrt(h))`, each of length d_out.
///
/// One thread: faer's parallel sums depend on the number of threads in the last bits.
fn left_singular_vectors(
    w: &[f32],
    shape: MatrixShape,
    rank: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<Vec<f64>>, SvdError> {
    let MatrixShape { d_in, d_out } = shape;
    let root: Option<Vec<f64>> =
        importance.map(|h| h.iter().map(|&h| f64::from(h).sqrt()).collect());
    // faer's matrices are column by column: the columns of this one are the rows of W.
    let transposed = Mat::from_fn(d_in, d_out, |i, r| {
        f64::from(w[r * d_in + i]) * root.as_ref().map_or(1.0, |h| h[i])
    });
    let size = d_in.min(d_out);
    let mut singular_values = Diag::zeros(size);
    let mut right = Mat::zeros(d_out, size);
    let thin = ComputeSvdVectors::Thin;
    let no = ComputeSvdVectors::No;
    let params = Default::default();
    let scratch = svd_scratch::<f64>(d_in, d_out, no, thin, Par::Seq, params);
    svd(
        transposed.as_ref(),
        singular_values.as_mut(),
        None,
        Some(right.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        params,
    )?;
    Ok((0..rank).map(|j| (0..d_out).map(|r| right[(r, j)]).collect()).collect())
}
