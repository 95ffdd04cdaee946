//! What the matrices of a layer should be, by what their outputs lack.

use calibration::{CalibratedInput, by_value};
use format::MatrixId;
use numerics::{Retarget, SampledLack, best_share, best_share_of};

use super::{Ahead, Lack};
use crate::error::TuningError;
use crate::stream::Decoded;

/// Inputs of a span where there are too many for a second moment.
const SPAN: usize = 4096;

/// Second moments of an input, made once for all matrices that read it.
pub(super) struct Moments {
    fitted: Retarget,
    /// [d_in, d_in].
    held_out: Vec<f32>,
}

/// What is lacking, over the contexts to fit to and the held-out ones.
pub(super) enum Lacks {
    Means(MeanLacks),
    Samples(SampledLacks),
}

/// The means of lack x^T, as [`Shortfall::mean`] gives them.
pub(super) struct MeanLacks {
    pub(super) fitted: Vec<f32>,
    pub(super) held_out: Vec<f32>,
}

/// What the outputs lack on the sampled inputs, [d_out, n].
pub(super) struct SampledLacks {
    pub(super) fitted: Vec<f32>,
    pub(super) held_out: Vec<f32>,
}

impl Ahead<'_, '_> {
    /// Takes what the matrix `id` gives off the whole outputs in `lacks`: E[(y - W x) x^T] = E[y x^T] - W E[x x^T].
    pub(super) fn take_off(
        &self,
        id: MatrixId,
        lacks: &mut MeanLacks,
        input: &CalibratedInput,
    ) -> Result<(), TuningError> {
        let (weights, d_in) = self.source_matrix(id)?;
        let mut given = vec![0.0; weights.len()];
        let both = [
            (&mut lacks.fitted, input.second_moment()),
            (&mut lacks.held_out, input.holdout_moment()),
        ];
        for (mean, moment) in both {
            let Some(moment) = moment else { continue };
            self.watch.mul_mat.mul_mat(&moment, &weights, d_in, &mut given);
            mean.iter_mut().zip(&given).for_each(|(mean, given)| *mean -= given);
        }
        Ok(())
    }

    /// What retargeting needs to know of an input; `None` where there are no second moments or that to fit to cannot be
    /// inverted.
    pub(super) fn moments(&self, input: &CalibratedInput) -> Option<Moments> {
        let fitted = Retarget::new(&input.second_moment()?, input.d(), self.watch.damping)?;
        Some(Moments { fitted, held_out: input.holdout_moment()? })
    }

    /// The matrix `id` of the source, and the length of its inputs.
    fn source_matrix(&self, id: MatrixId) -> Result<(Vec<f32>, usize), TuningError> {
        let file = self.stream.file;
        let info = file.require_tensor(&id.weight())?;
        let weights = file.to_f32(info)?;
        file.release(info);
        Ok((weights, info.dims()[0]))
    }

    /// Puts the matrix `id` into `met` and among what is seen as it is a share of the way from `weights` to `target`, if
    /// that is any.
    fn meet(
        &mut self,
        id: MatrixId,
        (weights, target): (&[f32], &[f32]),
        share: f64,
        met: &mut Decoded,
    ) {
        if share > 0.0 {
            let drawn = |(w, t): (&f32, &f32)| *w + share as f32 * (t - w);
            let target: Vec<f32> = weights.iter().zip(target).map(drawn).collect();
            met.insert(id, target.clone());
            self.seen.targets.insert(id, target);
        }
    }

    /// As [`Self::retarget`] from samples of inputs too long for a second moment, span by span.
    pub(super) fn retarget_in_spans(
        &mut self,
        id: MatrixId,
        lacks: &SampledLacks,
        input: &CalibratedInput,
        met: &mut Decoded,
    ) -> Result<(), TuningError> {
        let Some(samples) = input.fitted_samples() else { return Ok(()) };
        let (weights, d_in) = self.source_matrix(id)?;
        let (watch, d_out) = (self.watch, weights.len() / d_in);
        let mut by_output = Vec::new();
        by_value(&lacks.fitted, d_out, &mut by_output);
        let lack = SampledLack { d_in, by_input: &|range| samples.by_value(range), by_output };
        let width = SPAN.min(watch.max_moment_dim);
        let Some(change) = lack.change(width, watch.damping, watch.mul_mat) else {
            return Ok(());
        };
        let inputs = input.holdout_samples();
        let mut made = vec![0.0; lacks.held_out.len()];
        watch.mul_mat.mul_mat(&change, &inputs, d_in, &mut made);
        let share = best_share_of(&lacks.held_out, &made);
        let target: Vec<f32> = weights.iter().zip(&change).map(|(w, c)| w + c).collect();
        self.meet(id, (&weights, &target), share, met);
        Ok(())
    }

    /// Puts what the matrix `id` should be into `met` and among what is seen, if that can be told and helps.
    pub(super) fn retarget(
        &mut self,
        id: MatrixId,
        lack: Lack,
        (lacks, moments): (&MeanLacks, &Moments),
        met: &mut Decoded,
    ) -> Result<(), TuningError> {
        let (weights, d_in) = self.source_matrix(id)?;
        let mul_mat = self.watch.mul_mat;
        let shortfall = |mean: &Vec<f32>| match lack {
            Lack::Output => mean.clone(),
            Lack::Input => {
                let by_input: Vec<f32> =
                    (0..mean.len()).map(|i| mean[i % d_in * d_in + i / d_in]).collect();
                let mut out = vec![0.0; weights.len()];
                mul_mat.mul_mat(&by_input, &weights, d_in, &mut out);
                out
            }
        };
        let Some(target) = moments.fitted.target(&weights, &shortfall(&lacks.fitted)) else {
            return Ok(());
        };
        let both = (&*weights, &*target);
        let held_out = shortfall(&lacks.held_out);
        let share = best_share(both, &held_out, &moments.held_out, d_in, mul_mat);
        self.meet(id, both, share, met);
        Ok(())
    }
}
