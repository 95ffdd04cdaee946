//! What the sites of the next layers see, and what their matrices should make of it.

use std::collections::BTreeMap;

use calibration::{CalibratedInput, GrowingInput, MomentScratch, PassageKind, Sampling, by_value};
use format::{InputId, MatrixId, Site};
use llama::{Part, Point};
use numerics::{MatMul, Retarget, SampledLack, best_share, best_share_of};

use crate::error::{TuningError, stop_if};
use crate::shortfall::Shortfall;
use crate::stream::{Decoded, Place, Stream};

/// Bytes of the inputs of one site that are kept one by one, where there are too many for a second moment.
const SAMPLE_BYTES: u64 = 1 << 30;

/// Inputs of a span where there are too many for a second moment.
const SPAN: usize = 4096;

/// What is kept of what streams through.
#[derive(Clone)]
pub struct Watch<'a> {
    /// Longest input whose second moment is formed.
    pub max_moment_dim: usize,
    /// Tokens to fit to.
    pub n_fitted: u64,
    /// Held-out tokens, and those kept one by one.
    pub held_out: (u64, u64),
    /// Decides which.
    pub seed: u64,
    /// Damping of moments that are inverted, as a share of their mean diagonal.
    pub damping: f64,
    /// Matrices that will be coded: the others stay as they are.
    pub tensors: &'a [MatrixId],
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
}

impl Watch<'_> {
    /// Which inputs of `d` values are kept one by one.
    fn sampling(&self, d: usize) -> Sampling {
        let room = SAMPLE_BYTES / (size_of::<half::f16>() * d) as u64;
        Sampling::new((self.n_fitted, self.n_fitted.min(room)), self.held_out, self.seed)
    }
}

/// What the watched layers see.
#[derive(Debug, Default)]
pub struct Seen {
    /// The inputs in the model as it is coded so far.
    pub inputs: BTreeMap<InputId, CalibratedInput>,
    /// What takes the place of the matrices so that the hidden states come closest to those of the model as it
    /// was, [d_in, d_out]; none before the first coded layer, or where it would not help on held-out contexts.
    pub targets: BTreeMap<MatrixId, Vec<f32>>,
}

impl Stream<'_> {
    /// What the sites of `layers` see, the next ones, and what the matrices to be coded should be; `decoded` is what is
    /// coded in them already. Where several layers are watched, each counts as if its targets were met when the next one
    /// is, and the contexts come back to the first.
    ///
    /// Outputs are wanted as they were in the source model. Those that are added to the hidden state are wanted to bring
    /// that back to where it was, whatever went wrong before.
    ///
    /// # Errors
    /// [`TuningError::Llama`], [`TuningError::Gguf`], [`TuningError::Io`] or [`TuningError::Stopped`].
    pub fn watch(
        &mut self,
        layers: &[Decoded],
        watch: &Watch<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Seen, TuningError> {
        let kept = if layers.len() > 1 { Some(self.keep()?) } else { None };
        let mut ahead = Ahead { stream: self, watch, stop, seen: Seen::default() };
        for (n, decoded) in layers.iter().enumerate() {
            let met = ahead.observe(decoded.clone())?;
            if n + 1 < layers.len() {
                ahead.stream.advance(&met, stop)?;
            }
        }
        let Ahead { seen, .. } = ahead;
        if let Some(kept) = kept {
            self.restore(kept);
        }
        Ok(seen)
    }
}

/// A stream that is watched, and may run ahead.
struct Ahead<'a, 'm> {
    stream: &'a mut Stream<'m>,
    watch: &'a Watch<'a>,
    stop: &'a dyn Fn() -> bool,
    seen: Seen,
}

/// One input of a layer in one context.
struct View {
    /// In the model as it is coded so far, [d_in, tokens].
    input: Vec<f32>,
    /// What is lacking there or behind it, [any, tokens]; empty if nothing is.
    lack: Vec<f32>,
}

/// What is lacking at a site.
#[derive(Clone, Copy, PartialEq)]
enum Lack {
    /// Of the input: the outputs lack what the matrix makes of that.
    Input,
    /// Of the only output.
    Output,
}

impl Ahead<'_, '_> {
    /// Watches the layer in hand; its matrices with all targets met.
    fn observe(&mut self, mut met: Decoded) -> Result<Decoded, TuningError> {
        let layer = self.stream.layer();
        let middle = self.stream.middle(layer);
        self.stream.go(middle, &[], self.stop)?;
        for site in self.stream.sites(layer) {
            let all = site.matrices.iter().map(|matrix| matrix.id);
            let wanted: Vec<MatrixId> = all.filter(|id| self.watch.tensors.contains(id)).collect();
            if !wanted.is_empty() {
                self.observe_site(site, &wanted, &mut met)?;
            }
        }
        Ok(met)
    }

    fn observe_site(
        &mut self,
        site: &Site,
        wanted: &[MatrixId],
        met: &mut Decoded,
    ) -> Result<(), TuningError> {
        let d_in = site.matrices[0].shape.d_in;
        let lack = if site.input.role.feeds_state() { Lack::Output } else { Lack::Input };
        let differs = self.stream.differs || !met.is_empty();
        let (input, lacks) = match lack {
            Lack::Input => self.collect(site.input, d_in, |ahead, n| ahead.input(site, n))?,
            Lack::Output => {
                let replaced = self.stream.stand_ins(met)?;
                let seen = self.collect(site.input, d_in, |ahead, number| {
                    ahead.output(wanted[0], (&replaced, differs), number)
                })?;
                self.stream.source.at = Place::before(site.input.layer + 1);
                seen
            }
        };
        match lacks {
            Some(Lacks::Means(lacks)) => {
                if let Some(moments) = self.moments(&input) {
                    for id in wanted {
                        self.retarget(*id, lack, (&lacks, &moments), met)?;
                    }
                }
            }
            Some(Lacks::Samples(lacks)) => {
                self.retarget_in_spans(wanted[0], &lacks, &input, met)?;
            }
            None => {}
        }
        self.seen.inputs.insert(site.input, input);
        Ok(())
    }

    /// The input of a site of matrices whose outputs are not added to the hidden state.
    fn input(&mut self, site: &Site, number: usize) -> Result<View, TuningError> {
        let weight = site.matrices[0].id.weight();
        let to = Point::Input { layer: site.input.layer, weight: &weight };
        let stream = &mut *self.stream;
        let first = stream.first_matrix(site.input.layer);
        let tokens = &stream.contexts[number].tokens;
        let mut values = [(); 2].map(|()| vec![0.0; tokens.len() * site.matrices[0].shape.d_in]);
        let [input, lack] = &mut values;
        let part = |place: Place| Part::new(place.point(&first), to);
        let coded = (&stream.coded, input);
        let source = stream.differs.then_some((&stream.source, &mut *lack));
        for (side, out) in [Some(coded), source].into_iter().flatten() {
            stream.layers.run(&part(side.at), tokens, side.states.context(number), out)?;
        }
        let [input, mut lack] = values;
        match stream.differs {
            true => lack.iter_mut().zip(&input).for_each(|(lack, x)| *lack -= x),
            false => lack.clear(),
        }
        Ok(View { input, lack })
    }

    /// The input of a matrix whose output is added to the hidden state, with `replaced` in its layer. Takes the source's
    /// states to the next layer.
    fn output(
        &mut self,
        id: MatrixId,
        (replaced, differs): (&[llama::StandIn], bool),
        number: usize,
    ) -> Result<View, TuningError> {
        let stream = &mut *self.stream;
        let (weight, to) = (id.weight(), Point::Before(id.layer + 1));
        let first = stream.first_matrix(id.layer);
        let tokens = &stream.contexts[number].tokens;
        let part = Part { watched: Some(&weight), ..Part::new(stream.coded.at.point(&first), to) };
        let state = stream.source.states.context(number);
        let mut wanted = vec![0.0; state.len()];
        stream.layers.run(&part, tokens, state, &mut wanted)?;
        let mut view = View { input: stream.layers.watched().input.clone(), lack: Vec::new() };
        if differs {
            let mut lack = stream.layers.watched().output.clone();
            let mut found = vec![0.0; state.len()];
            let part = Part { stand_ins: replaced, ..part };
            let state = stream.coded.states.context(number);
            let ran = stream.layers.run(&part, tokens, state, &mut found)?;
            view.input.clone_from(&stream.layers.watched().input);
            if ran.gain == 0.0 {
                // Something stands between the output and the state: the output itself is wanted as it was.
                let outputs = &stream.layers.watched().output;
                lack.iter_mut().zip(outputs).for_each(|(lack, y)| *lack -= y);
            } else {
                let both = wanted.iter().zip(&found);
                lack = both.map(|(wanted, found)| (wanted - found) / ran.gain).collect();
            }
            view.lack = lack;
        }
        stream.source.states.context_mut(number).copy_from_slice(&wanted);
        Ok(view)
    }

    /// The input `seen`, of `d_in` values, over all contexts, and what is lacking where something is: the means of
    /// lack x^T where there is a second moment, else what the only output lacks on the samples.
    fn collect(
        &mut self,
        seen: InputId,
        d_in: usize,
        mut view: impl FnMut(&mut Self, usize) -> Result<View, TuningError>,
    ) -> Result<(CalibratedInput, Option<Lacks>), TuningError> {
        let (watch, stop) = (self.watch, self.stop);
        let sampling = watch.sampling(d_in);
        let mut growing = GrowingInput::new(d_in, watch.max_moment_dim);
        let mut scratch = MomentScratch::default();
        let (mut n_before, mut sums) = ([0; 2], [Shortfall::default(), Shortfall::default()]);
        let mut sampled = [Vec::new(), Vec::new()];
        for number in 0..self.stream.contexts.len() {
            let View { mut input, mut lack } = view(self, number)?;
            if !input.iter().chain(&lack).all(|v| v.is_finite()) {
                return Err(TuningError::NonFinite { input: seen });
            }
            if let Some(weights) = &self.stream.weights {
                weights.apply(seen, number, &mut input);
                weights.apply(seen, number, &mut lack);
            }
            let kind = self.stream.contexts[number].kind;
            let first = &mut n_before[kind as usize];
            growing.add((kind, *first), &input, &sampling, watch.mul_mat, &mut scratch);
            let n = input.len() / d_in;
            if d_in <= watch.max_moment_dim {
                if !lack.is_empty() {
                    sums[kind as usize].add(&lack, &input, d_in, watch.mul_mat);
                }
            } else if seen.role.feeds_state() {
                let d_out = lack.len() / n;
                let rows = sampling.among(kind, *first, n as u64);
                let rows = rows.flat_map(|row| &lack[row * d_out..(row + 1) * d_out]);
                sampled[kind as usize].extend(rows);
            }
            *first += n as u64;
            stop_if(stop)?;
        }
        let [fitted, held_out] =
            [PassageKind::Fitted, PassageKind::HeldOut].map(|kind| sums[kind as usize].mean());
        let means = fitted.zip(held_out);
        let means = means.map(|(fitted, held_out)| Lacks::Means(MeanLacks { fitted, held_out }));
        let [fitted, held_out] = sampled;
        let samples = (!fitted.is_empty() && !held_out.is_empty())
            .then_some(Lacks::Samples(SampledLacks { fitted, held_out }));
        Ok((growing.finish(), means.or(samples)))
    }

    /// What retargeting needs to know of an input; `None` where there are no second moments or that to fit to cannot be
    /// inverted.
    fn moments(&self, input: &CalibratedInput) -> Option<Moments> {
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
    fn retarget_in_spans(
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
        let lack = SampledLack {
            d_in,
            n: samples.len(),
            by_input: &|range| samples.by_value(range),
            by_output,
        };
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
    fn retarget(
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

/// Second moments of an input, made once for all matrices that read it.
struct Moments {
    fitted: Retarget,
    /// [d_in, d_in].
    held_out: Vec<f32>,
}

/// What is lacking, over the contexts to fit to and the held-out ones.
enum Lacks {
    Means(MeanLacks),
    Samples(SampledLacks),
}

/// The means of lack x^T, as [`Shortfall::mean`] gives them.
struct MeanLacks {
    fitted: Vec<f32>,
    held_out: Vec<f32>,
}

/// What the outputs lack on the sampled inputs, [d_out, n].
struct SampledLacks {
    fitted: Vec<f32>,
    held_out: Vec<f32>,
}
