//! What the sites of the next layers see, and what their matrices should make of it.

mod targets;

use std::collections::BTreeMap;

use calibration::{CalibratedInput, GrowingInput, MomentScratch, PassageKind, Sampling};
use format::{InputId, MatrixId, Site};
use llama::{Part, Point};
use numerics::MatMul;

use crate::error::{TuningError, stop_if};
use crate::shortfall::Shortfall;
use crate::stream::{Decoded, Place, Stream};
use targets::{Lacks, MeanLacks, SampledLacks};

/// Bytes of the inputs of one site that are kept one by one, where there are too many for a second moment.
const SAMPLE_BYTES: u64 = 1 << 30;

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
        let mark = if layers.len() > 1 { Some(self.mark()?) } else { None };
        let mut ahead = Ahead { stream: self, watch, stop, seen: Seen::default() };
        for (n, decoded) in layers.iter().enumerate() {
            let met = ahead.observe(decoded.clone())?;
            if n + 1 < layers.len() {
                ahead.stream.advance(&met, stop)?;
            }
        }
        let Ahead { seen, .. } = ahead;
        if let Some(mark) = mark {
            self.return_to(mark);
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

/// How the only output of a site is looked at.
#[derive(Clone, Copy)]
struct Watched<'a> {
    id: MatrixId,
    /// Matrices in the place of others of the layer.
    replaced: &'a [llama::StandIn],
    /// Whether the sides differ.
    differs: bool,
    /// Whether the output itself may be given instead of what it lacks: what the matrix gives is in the second moment, and
    /// its product need not be computed.
    may_be_whole: bool,
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
                let (replaced, mut is_whole) = (self.stream.stand_ins(met)?, false);
                let watched = Watched {
                    id: wanted[0],
                    replaced: &replaced,
                    differs,
                    may_be_whole: d_in <= self.watch.max_moment_dim,
                };
                let (input, mut lacks) = self.collect(site.input, d_in, |ahead, number| {
                    let (view, whole) = ahead.output(watched, number)?;
                    is_whole = whole;
                    Ok(view)
                })?;
                self.stream.reach(Place::before(site.input.layer + 1))?;
                if let Some(Lacks::Means(lacks)) = lacks.as_mut().filter(|_| is_whole) {
                    self.take_off(wanted[0], lacks, &input)?;
                }
                (input, lacks)
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
        let coded = (&mut stream.coded, input);
        let source = stream.differs.then_some((&mut stream.source, &mut *lack));
        for (side, out) in [Some(coded), source].into_iter().flatten() {
            side.run(&mut stream.layers, &part(side.at), (number, tokens), out)?;
        }
        let [input, mut lack] = values;
        match stream.differs {
            true => lack.iter_mut().zip(&input).for_each(|(lack, x)| *lack -= x),
            false => lack.clear(),
        }
        Ok(View { input, lack })
    }

    /// The input of a matrix whose output is added to the hidden state, and whether what is lacking is the whole output.
    /// Takes the source's states to the next layer.
    fn output(&mut self, watched: Watched<'_>, number: usize) -> Result<(View, bool), TuningError> {
        let stream = &mut *self.stream;
        let Watched { id, replaced, differs, may_be_whole } = watched;
        let (weight, to) = (id.weight(), Point::Before(id.layer + 1));
        let first = stream.first_matrix(id.layer);
        let tokens = &stream.contexts[number].tokens;
        let part = Part { watched: Some(&weight), ..Part::new(stream.coded.at.point(&first), to) };
        let reached = Place::before(id.layer + 1);
        // What the source's own product gives is not kept: where that is wanted, the source runs.
        let known = stream.known_state(reached, number).filter(|_| differs).map(<[f32]>::to_vec);
        let gain = if known.is_some() { stream.layers.gain(&part)? } else { 0.0 };
        let (wanted, gain) = match known {
            Some(known) if gain != 0.0 => (known, gain),
            _ => stream.source.state_behind(&mut stream.layers, &part, (number, tokens))?,
        };
        if !differs {
            let input = stream.layers.watched().input.clone();
            stream.set_source(reached, number, &wanted);
            return Ok((View { input, lack: Vec::new() }, false));
        }
        // Where something stands between the output and the state, the output itself is wanted as it was.
        let outputs = (gain == 0.0).then(|| stream.layers.watched().output.clone());
        let is_whole = may_be_whole && gain != 0.0;
        let part = Part { stand_ins: replaced, omits: is_whole, ..part };
        let (found, _) = stream.coded.state_behind(&mut stream.layers, &part, (number, tokens))?;
        let seen = stream.layers.watched();
        let lack = match outputs {
            Some(outputs) => outputs.iter().zip(&seen.output).map(|(y, found)| y - found).collect(),
            None => wanted.iter().zip(&found).map(|(y, found)| (y - found) / gain).collect(),
        };
        let view = View { input: seen.input.clone(), lack };
        stream.set_source(reached, number, &wanted);
        Ok((view, is_whole))
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
            growing.add((kind, *first), (&input, 1), &sampling, watch.mul_mat, &mut scratch);
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
}
