//! From a matrix to the sidecars of a sections code: learn, search, refit, in turn.

use format::{CodecError, MatrixShape, Sidecar, f16_clamped};
use half::f16;
use numerics::EncodeContext;
use numerics::coo::Coo;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::descent::Descent;
use crate::metric::Metric;
use crate::parts::{Atoms, SectionsParts};
use crate::refit::Refit;
use crate::search::{Coded, Problem, RowSums};
use crate::{SectionsParams, learn};
use format::sections::{BLOCK, SectionsLayout};

/// Beam of all searches but the last: atoms, scales and outliers that are chosen by them hardly depend on it.
const REFIT_BEAM: usize = 8;
/// Where samples are cut off, in units of their row's scale, when outliers are corrected one by one.
const CLIP: f32 = 4.0;
/// Scales below this are taken for zero: half precision would not hold them.
const SMALLEST_SCALE: f64 = 1e-30;

/// One matrix on its way to sidecars.
pub(crate) struct Fit<'a> {
    pub(crate) params: &'a SectionsParams,
    pub(crate) weights: &'a [f32],
    pub(crate) shape: MatrixShape,
    pub(crate) metric: &'a Metric,
    /// Is learned here where there is none.
    pub(crate) dictionary: Option<&'a Dictionary>,
    pub(crate) context: &'a EncodeContext<'a>,
}

/// Atoms that several matrices have in common, as they are in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Dictionary {
    /// Rounded to half precision.
    atoms: Atoms,
    /// What row scales have been divided by.
    gain: f32,
}

/// A complete code, before it is rounded to the file's types.
#[derive(Clone)]
struct Solution {
    atoms: Atoms,
    winners: Vec<u8>,
    scales: Vec<f32>,
    cost: f64,
}

impl Fit<'_> {
    pub(crate) fn run(&self) -> Result<Vec<Sidecar>, CodecError> {
        if let Some(dictionary) = self.dictionary {
            return self.run_with(dictionary.atoms.clone());
        }
        self.run_with(self.learned())
    }

    /// The dictionary that the weights get.
    pub(crate) fn dictionary(&self) -> Result<Dictionary, CodecError> {
        let (solution, _) = self.solve(self.learned())?;
        let gain = balance(&solution.scales);
        let round = |atom: &[f32; BLOCK]| atom.map(|a| f16_clamped(a * gain).to_f32());
        Ok(Dictionary { atoms: solution.atoms.iter().map(round).collect(), gain })
    }

    fn learned(&self) -> Atoms {
        let progress = self.context.progress;
        progress.stage("learn", 1);
        let atoms = self.learn();
        progress.advance(1);
        atoms
    }

    /// A dictionary for the weights, whatever the metric.
    pub(crate) fn learn(&self) -> Atoms {
        let samples = self.samples(&self.row_norms(&Coo::empty(self.shape)));
        let SectionsParams { sections, learn_rounds, .. } = *self.params;
        learn::learn(&samples, sections, learn_rounds, self.context.seed)
    }

    /// Codes with a dictionary that [`Self::learn`] made, for these weights or for ones like them.
    pub(crate) fn run_with(&self, atoms: Atoms) -> Result<Vec<Sidecar>, CodecError> {
        let (solution, outliers) = self.solve(atoms)?;
        self.finish(&solution, outliers)
    }

    fn solve(&self, atoms: Atoms) -> Result<(Solution, Coo), CodecError> {
        let scales = self.first_scales(&Coo::empty(self.shape));
        let outliers = self.choose_outliers(&atoms, &scales)?;
        let scales = if outliers.is_empty() { scales } else { self.first_scales(&outliers) };
        let problem =
            Problem::new(self.weights, self.shape, self.metric, &outliers, self.context.mul_mat);
        let solution = self.alternate(&problem, atoms, scales);
        Ok((solution, outliers))
    }

    /// Row scales to begin with.
    fn first_scales(&self, outliers: &Coo) -> Vec<f32> {
        let mut scales = self.row_norms(outliers);
        if let Some(dictionary) = self.dictionary {
            scales.iter_mut().for_each(|scale| *scale /= dictionary.gain);
        }
        scales
    }

    /// Root mean square of every row without its outliers.
    fn row_norms(&self, outliers: &Coo) -> Vec<f32> {
        let d_in = self.shape.d_in;
        let norm = |(row, w): (usize, &[f32])| {
            let mut sum: f64 = w.iter().map(|v| f64::from(*v).powi(2)).sum();
            let mut n = d_in;
            for (_, column, _) in outliers.entries(row..row + 1) {
                sum -= f64::from(w[column]).powi(2);
                n -= 1;
            }
            let norm = (sum.max(0.0) / n.max(1) as f64).sqrt();
            if norm < SMALLEST_SCALE { 0.0 } else { norm as f32 }
        };
        self.weights.par_chunks_exact(d_in).enumerate().map(norm).collect()
    }

    /// Random blocks in units of their row's scale. Blocks with padding are left out unless there are no
    /// others.
    fn samples(&self, scales: &[f32]) -> Vec<[f32; BLOCK]> {
        let d_in = self.shape.d_in;
        let per_row = (d_in / BLOCK).max(1);
        let used: Vec<usize> = (0..self.shape.d_out).filter(|r| scales[*r] > 0.0).collect();
        let total = used.len() * per_row;
        let mut rng = ChaCha8Rng::seed_from_u64(self.context.seed);
        let picked = index::sample(&mut rng, total, self.params.max_samples.min(total));
        let clip = if self.params.n_outliers(self.shape) > 0 { CLIP } else { f32::INFINITY };
        let block = |i: usize| {
            let (row, block) = (used[i / per_row], i % per_row);
            let row_weights = &self.weights[row * d_in..(row + 1) * d_in];
            let mut x = [0.0; BLOCK];
            for (x, w) in x.iter_mut().zip(&row_weights[block * BLOCK..]) {
                *x = (w / scales[row]).clamp(-clip, clip);
            }
            x
        };
        picked.iter().map(block).collect()
    }

    /// The weights that cost most when every block is coded by itself.
    fn choose_outliers(&self, atoms: &Atoms, scales: &[f32]) -> Result<Coo, CodecError> {
        let n = self.params.n_outliers(self.shape);
        let none = Coo::empty(self.shape);
        if n == 0 {
            return Ok(none);
        }
        let white = Metric::white(self.shape.d_in);
        let problem = Problem::new(self.weights, self.shape, &white, &none, self.context.mul_mat);
        self.context.progress.stage("outliers", self.metric.n_blocks as u64);
        let beam = self.params.beam.min(REFIT_BEAM);
        let coded = problem.search(atoms, scales, beam, self.context.progress);
        let parts = self.parts(atoms.clone(), coded.winners, scales.to_vec(), None);
        let mut residual = parts.decode();
        residual.par_iter_mut().zip(self.weights).for_each(|(r, w)| *r = w - *r);
        Coo::largest(&residual, self.shape, n, Some(&self.metric.diagonal))
    }

    /// Searches winners and refits scales and, unless they are given, atoms in turn; the cheapest solution of all rounds.
    fn alternate(&self, problem: &Problem, mut atoms: Atoms, mut scales: Vec<f32>) -> Solution {
        let progress = self.context.progress;
        let n_blocks = self.metric.n_blocks as u64;
        let mut best: Option<Solution> = None;
        for round in 0..=self.params.rounds {
            let stage = if round == 0 { "encode" } else { "refine" };
            progress.stage(stage, n_blocks);
            let last = round == self.params.rounds;
            let beam = if last { self.params.beam } else { self.params.beam.min(REFIT_BEAM) };
            let Coded { winners, rows } = problem.search(&atoms, &scales, beam, progress);
            let cost = rescale(&rows, &mut scales);
            let improved = best.as_ref().is_none_or(|b| cost < b.cost);
            if improved {
                best =
                    Some(Solution { atoms: atoms.clone(), winners, scales: scales.clone(), cost });
            }
            let Some(best) = &best else { break };
            if round < self.params.rounds {
                if self.dictionary.is_none() {
                    let mul_mat = self.context.mul_mat;
                    let refit = Refit::new(problem, &best.winners, &best.scales, mul_mat);
                    atoms = refit.solve(&best.atoms);
                }
                scales.copy_from_slice(&best.scales);
            }
        }
        let mut best = best.expect("one round at least");
        self.descend(problem, &mut best);
        best
    }

    /// Lets every block of `solution` see the errors of all others, those to its right too.
    fn descend(&self, problem: &Problem, solution: &mut Solution) {
        let SectionsParams { beam, sweeps, .. } = *self.params;
        let Some(descent) = Descent::new(problem).filter(|_| sweeps > 0) else { return };
        let (mul_mat, progress) = (self.context.mul_mat, self.context.progress);
        progress.stage("descend", (self.metric.n_blocks * sweeps) as u64);
        let mut better = solution.clone();
        let code = (&solution.atoms, solution.scales.as_slice());
        let rows = descent.run(code, &mut better.winners, (beam, sweeps), mul_mat, progress);
        better.cost = rescale(&rows, &mut better.scales);
        if better.cost < solution.cost {
            *solution = better;
        }
    }

    fn parts(
        &self,
        atoms: Atoms,
        winners: Vec<u8>,
        row_scale: Vec<f32>,
        outliers: Option<Coo>,
    ) -> SectionsParts {
        let layout = SectionsLayout { shape: self.shape, sections: self.params.sections };
        SectionsParts { layout, atoms, winners, row_scale, outliers }
    }

    /// Rounds to the file's types; outliers make up for what that leaves.
    fn finish(&self, solution: &Solution, mut outliers: Coo) -> Result<Vec<Sidecar>, CodecError> {
        let gain = self.dictionary.map_or_else(|| balance(&solution.scales), |_| 1.0);
        let round = |v: f32| f16_clamped(v);
        let atoms: Vec<f16> = solution.atoms.iter().flatten().map(|a| round(a * gain)).collect();
        let scales: Vec<f16> = solution.scales.iter().map(|s| round(s / gain)).collect();
        let stored: Vec<f32> = atoms.iter().map(|a| a.to_f32()).collect();
        let mut parts = self.parts(
            stored.as_chunks::<BLOCK>().0.to_vec(),
            solution.winners.clone(),
            scales.iter().map(|s| s.to_f32()).collect(),
            None,
        );
        if !outliers.is_empty() {
            let mut residual = parts.decode();
            residual.par_iter_mut().zip(self.weights).for_each(|(r, w)| *r = w - *r);
            outliers.refit(&residual);
            parts.outliers = Some(outliers);
        }
        parts.to_sidecars()
    }
}

/// Gives every row the scale that costs least; what all cost then.
fn rescale(rows: &[RowSums], scales: &mut [f32]) -> f64 {
    let mut cost = 0.0;
    for (scale, row) in scales.iter_mut().zip(rows) {
        let factor = row.best_factor();
        cost += row.cost(factor) * f64::from(*scale).powi(2);
        *scale = (f64::from(*scale) * factor) as f32;
    }
    cost
}

/// A power of two that atoms are multiplied and scales divided by, so that both have about the same size
/// and stay within half precision.
fn balance(scales: &[f32]) -> f32 {
    let largest = scales.iter().fold(0.0f32, |m, s| m.max(*s));
    if largest > 0.0 {
        (f64::from(largest).log2() / 2.0).round().clamp(-12.0, 12.0).exp2() as f32
    } else {
        1.0
    }
}
