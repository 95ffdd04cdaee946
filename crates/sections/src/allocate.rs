//! How many sections each of many matrices gets when all of them share a budget.
//!
//! The weighted sum of the matrices' errors is minimized for a given number of bytes by a Lagrange multiplier, as
//! in the allocation of bits to quantizers (Shoham and Gersho 1988): on the lower convex hull of every
//! matrix's errors over its sizes, steps are taken in the order of what they bring per byte.

use std::ops::RangeInclusive;
use std::sync::Arc;

use format::{CodecError, MatrixShape};
use numerics::EncodeContext;

use crate::{Metric, Probe, SectionsCodec, SectionsParams};

/// Numbers of sections that are shared out.
pub const SHARED_SECTIONS: RangeInclusive<usize> = 4..=10;

/// Numbers of sections that are tried; errors of those between follow, for they fall geometrically.
const TRIED: [usize; 4] = [4, 6, 8, 10];

/// One way to code a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Number of sections.
    pub sections: usize,
    /// Bytes of the sidecars.
    pub n_bytes: u64,
    /// What the error costs, finite and not negative.
    pub cost: f64,
}

/// The errors of a matrix with every number of sections of [`SHARED_SECTIONS`], ascending, estimated on a
/// [`Probe`] and scored by `score`. With a `metric` codes are fitted to it, else to the importance of `context`.
///
/// # Errors
/// As [`Probe::new`] and [`Probe::error`].
///
/// # Panics
/// If `weights` do not fill `shape`.
pub fn errors_by_sections(
    params: &SectionsParams,
    (weights, shape): (&[f32], MatrixShape),
    metric: Option<Arc<Metric>>,
    context: &EncodeContext<'_>,
    mut score: impl FnMut(&Probe, &[f32]) -> f64,
) -> Result<Vec<(usize, f64)>, CodecError> {
    let codec = match metric {
        Some(metric) => SectionsCodec::new(params.clone()).with_metric(metric),
        None => SectionsCodec::new(params.clone()),
    };
    let metric = codec.metric(shape, context.importance)?;
    let mut tried = Vec::new();
    for sections in TRIED {
        let params = SectionsParams { sections, ..params.clone() };
        let probe = Probe::new(&params, weights, shape, context)?;
        let left = probe.error_in(&metric, context)?;
        tried.push((sections, score(&probe, &left)));
    }
    Ok(SHARED_SECTIONS.map(|sections| (sections, interpolate(&tried, sections))).collect())
}

/// The geometric mean of the neighbours of a number that was not tried.
fn interpolate(tried: &[(usize, f64)], sections: usize) -> f64 {
    let below = tried.iter().rfind(|(s, _)| *s <= sections);
    let above = tried.iter().find(|(s, _)| *s >= sections);
    match (below, above) {
        (Some(a), Some(b)) if a.0 < b.0 => {
            let t = (sections - a.0) as f64 / (b.0 - a.0) as f64;
            a.1.powf(1.0 - t) * b.1.powf(t)
        }
        (Some(a), _) | (_, Some(a)) => a.1,
        (None, None) => 0.0,
    }
}

/// One choice for every matrix, so that their bytes are at most `budget` and the sum of their costs is as
/// small as steps along the convex hulls make it; `None` if even the smallest choices need more. Of
/// equally good steps that of the first matrix is taken.
///
/// # Panics
/// If a matrix has no choices.
#[must_use]
pub fn allocate(matrices: &[Vec<Choice>], budget: u64) -> Option<Vec<Choice>> {
    let hulls: Vec<Vec<Choice>> = matrices.iter().map(|choices| hull(choices)).collect();
    let mut at = vec![0; hulls.len()];
    let mut used: u64 = hulls.iter().map(|h| h[0].n_bytes).sum();
    if used > budget {
        return None;
    }
    loop {
        let mut best: Option<(f64, usize, u64)> = None;
        for (i, hull) in hulls.iter().enumerate() {
            let [here, next] = [hull.get(at[i]), hull.get(at[i] + 1)];
            let (Some(here), Some(next)) = (here, next) else { continue };
            let more = next.n_bytes - here.n_bytes;
            let gain = (here.cost - next.cost) / more as f64;
            if used + more <= budget && best.is_none_or(|(b, ..)| gain > b) {
                best = Some((gain, i, more));
            }
        }
        let Some((_, i, more)) = best else { break };
        at[i] += 1;
        used += more;
    }
    Some(hulls.iter().zip(at).map(|(hull, at)| hull[at]).collect())
}

/// The choices that no mixture of others beats: fewer bytes first, each step bringing less per byte.
fn hull(choices: &[Choice]) -> Vec<Choice> {
    let mut sorted = choices.to_vec();
    sorted.sort_by(|a, b| a.n_bytes.cmp(&b.n_bytes).then(a.cost.total_cmp(&b.cost)));
    let mut hull: Vec<Choice> = Vec::new();
    let slope = |a: &Choice, b: &Choice| (a.cost - b.cost) / (b.n_bytes - a.n_bytes) as f64;
    for choice in sorted {
        if hull.last().is_some_and(|last| choice.cost >= last.cost) {
            continue;
        }
        while let [.., a, b] = hull.as_slice()
            && slope(a, b) <= slope(b, &choice)
        {
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Choices whose cost falls by `fall` for each section.
    fn matrix(size: u64, weight: f64, fall: f64) -> Vec<Choice> {
        SHARED_SECTIONS
            .map(|sections| Choice {
                sections,
                n_bytes: size * sections as u64,
                cost: weight * fall.powi(sections as i32),
            })
            .collect()
    }

    fn sections(choices: &[Choice]) -> Vec<usize> {
        choices.iter().map(|c| c.sections).collect()
    }

    #[test]
    fn equal_matrices_get_equal_shares_and_heavy_ones_more() {
        let equal = vec![matrix(100, 1.0, 0.5); 4];
        assert_eq!(sections(&allocate(&equal, 2800).unwrap()), [7; 4]);
        assert_eq!(sections(&allocate(&equal, 2900).unwrap()), [8, 7, 7, 7]);
        let heavy = [matrix(100, 8.0, 0.5), matrix(100, 1.0, 0.5)];
        assert_eq!(sections(&allocate(&heavy, 1300).unwrap()), [8, 5]);
        assert_eq!(sections(&allocate(&heavy, u64::MAX).unwrap()), [10, 10]);
        assert_eq!(allocate(&heavy, 799), None);
    }

    #[test]
    fn sizes_that_bring_nothing_are_left_out() {
        let mut choices = matrix(10, 1.0, 0.5);
        choices[1].cost = 2.0; // S = 5 is worse than S = 4
        choices.iter_mut().skip(4).for_each(|c| c.cost = 0.0); // S = 8 is exact
        assert_eq!(sections(&allocate(&[choices.clone()], 59).unwrap()), [4]);
        assert_eq!(sections(&allocate(&[choices], 1000).unwrap()), [8]);
    }

    #[test]
    fn errors_between_those_tried_are_geometric_means() {
        let tried = [(4, 0.16), (6, 0.04)];
        assert!((interpolate(&tried, 5) - 0.08).abs() < 1e-12);
        assert_eq!((interpolate(&tried, 4), interpolate(&tried, 6)), (0.16, 0.04));
    }

    proptest! {
        /// At the budget that the solution itself needs, no other combination is cheaper.
        #[test]
        fn nothing_of_the_same_size_costs_less(
            made in proptest::collection::vec((1u64..9, 0.1f64..9.0, 0.3f64..0.8), 1..4),
            share in 0.0f64..1.0,
        ) {
            let matrices: Vec<_> = made.iter().map(|(s, w, f)| matrix(*s, *w, *f)).collect();
            let size: u64 = made.iter().map(|(s, ..)| s).sum();
            let budget = 4 * size + (share * 6.0 * size as f64) as u64;
            let found = allocate(&matrices, budget).unwrap();
            let used: u64 = found.iter().map(|c| c.n_bytes).sum();
            prop_assert!(used <= budget);
            let cost: f64 = found.iter().map(|c| c.cost).sum();
            // Lagrange: minimal among all of at most these bytes, up to the last step's share
            let step = made.iter().map(|(s, ..)| *s).max().unwrap();
            for i in 0..7usize.pow(made.len() as u32) {
                let choice: Vec<Choice> =
                    matrices.iter().enumerate().map(|(m, c)| c[i / 7usize.pow(m as u32) % 7]).collect();
                let bytes: u64 = choice.iter().map(|c| c.n_bytes).sum();
                if bytes + step <= used {
                    prop_assert!(choice.iter().map(|c| c.cost).sum::<f64>() >= cost - 1e-12);
                }
            }
        }
    }
}
