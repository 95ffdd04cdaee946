//! Least-squares fit of a base, its parts in turn, and of the row scale.

use std::borrow::Cow;

use format::seeddelta::{BaseSpec, BaseType, Part};
use format::{CodecError, MatrixShape};
use rayon::prelude::*;

use crate::part::{self, add_row};
use crate::weights::Weights;

/// Upper limit of the rounds in which parts and row scale are fitted in turn.
const MAX_ROUNDS: usize = 8;
/// A round that lowers the squared error by less than this share is the last.
const MIN_GAIN: f64 = 1e-3;

/// A fitted base with its row scale, both as they are after storing.
pub(crate) struct Fitted {
    pub(crate) parts: Vec<Part>,
    pub(crate) gains: Option<Vec<f32>>,
}

/// Fits the parts of `spec` in turn, each on what the others leave, and the row scale, until the error
/// stops falling. Every step is an exact minimum over its own parameters, so the error never rises.
pub(crate) fn fit(
    w: &[f32],
    shape: MatrixShape,
    spec: &BaseSpec,
    base_type: BaseType,
    importance: Option<&[f32]>,
    row_scale: bool,
) -> Result<Fitted, CodecError> {
    let row_scale = row_scale && !spec.parts().is_empty();
    let mut parts: Vec<Part> = Vec::new();
    let mut gains: Option<Vec<f32>> = None;
    let mut last_error = f64::INFINITY;
    for _ in 0..MAX_ROUNDS {
        for (i, spec) in spec.parts().iter().enumerate() {
            let others = || parts.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, p)| p);
            let wanted = if others().next().is_none() {
                Cow::Borrowed(w)
            } else {
                Cow::Owned(subtract(w, shape, &others().collect::<Vec<_>>(), gains.as_deref()))
            };
            let weights = Weights { importance, gains: gains.as_deref() };
            let fitted = part::fit(*spec, &wanted, shape, &weights)?;
            if i < parts.len() { parts[i] = fitted } else { parts.push(fitted) }
        }
        if row_scale {
            gains = Some(best_gains(w, shape, &parts, importance));
        }
        if parts.len() < 2 && !row_scale {
            break;
        }
        let error = energy(&subtract_all(w, shape, &parts, gains.as_deref()), shape, importance);
        if error >= last_error * (1.0 - MIN_GAIN) || error == 0.0 {
            break;
        }
        last_error = error;
    }
    parts.iter_mut().for_each(|part| part.round(base_type));
    if row_scale {
        let mut best = best_gains(w, shape, &parts, importance);
        best.iter_mut().for_each(|g| *g = BaseType::F16.round(*g));
        gains = Some(best);
    }
    Ok(Fitted { parts, gains })
}

/// `w - diag(gains) * sum of parts`, [d_in, d_out].
pub(crate) fn subtract_all(
    w: &[f32],
    shape: MatrixShape,
    parts: &[Part],
    gains: Option<&[f32]>,
) -> Vec<f32> {
    subtract(w, shape, &parts.iter().collect::<Vec<_>>(), gains)
}

fn subtract(w: &[f32], shape: MatrixShape, parts: &[&Part], gains: Option<&[f32]>) -> Vec<f32> {
    let mut residual = w.to_vec();
    residual.par_chunks_mut(shape.d_in).enumerate().for_each(|(row, out)| {
        let gain = gains.map_or(1.0, |g| g[row]);
        parts.iter().for_each(|part| add_row(part, row, -gain, out));
    });
    residual
}

/// Least-squares scale of every row of the base; 1 for a row of zeros.
fn best_gains(
    w: &[f32],
    shape: MatrixShape,
    parts: &[Part],
    importance: Option<&[f32]>,
) -> Vec<f32> {
    let best = |(row, w): (usize, &[f32])| {
        let mut base = vec![0.0f32; shape.d_in];
        parts.iter().for_each(|part| add_row(part, row, 1.0, &mut base));
        let (mut dot, mut norm) = (0.0, 0.0);
        for (i, (&w, &b)) in w.iter().zip(&base).enumerate() {
            let h = importance.map_or(1.0, |h| f64::from(h[i]));
            dot += h * f64::from(w) * f64::from(b);
            norm += h * f64::from(b) * f64::from(b);
        }
        if norm > 0.0 { (dot / norm) as f32 } else { 1.0 }
    };
    w.par_chunks(shape.d_in).enumerate().map(best).collect()
}

/// `sum_ri h_i residual[r, i]^2`, summed in row order whatever the number of threads.
fn energy(residual: &[f32], shape: MatrixShape, importance: Option<&[f32]>) -> f64 {
    let of_row = |row: &[f32]| -> f64 {
        let squares = row.iter().map(|&v| f64::from(v) * f64::from(v));
        match importance {
            None => squares.sum(),
            Some(h) => squares.zip(h).map(|(v, &h)| f64::from(h) * v).sum(),
        }
    };
    residual.par_chunks(shape.d_in).map(of_row).collect::<Vec<f64>>().into_iter().sum()
}
