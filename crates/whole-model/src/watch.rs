//! What the FFN matrices of the next layers see, and what they should make of it.

use std::collections::BTreeMap;

use calibration::{CalibratedInput, GrowingInput, MomentScratch, Sampling};
use candle_core::{Device, Tensor};
use format::{InputId, InputRole, MatrixId, MatrixShape};
use numerics::{MatMul, Retarget, retarget_gain};

use crate::TuningError;
use crate::layer::linear;
use crate::llama::FfnWeights;
use crate::stream::{LayerFfn, Passage, Stream, stop_if};

/// What is kept of what streams through.
#[derive(Clone)]
pub struct Watch<'a> {
    /// Longest input whose second moment is formed.
    pub max_moment_dim: usize,
    /// Which inputs are kept one by one.
    pub sampling: Sampling,
    /// Damping of moments that are inverted, as a share of their mean diagonal.
    pub damping: f64,
    /// Matrices that will be coded: the others stay as they are.
    pub tensors: &'a [MatrixId],
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
}

/// What the watched layers see.
#[derive(Debug, Default)]
pub struct Seen {
    /// The inputs in the model as it is coded so far.
    pub inputs: BTreeMap<InputId, CalibratedInput>,
    /// What takes the place of the matrices so that the hidden states come closest to those of the model as it
    /// was, [d_in, d_out]; none before the first coded layer, where there is no second moment, or where it would
    /// not help on held-out contexts.
    pub targets: BTreeMap<MatrixId, Vec<f32>>,
}

impl Stream {
    /// What the FFN matrices of the next layers see, which are `ffn`, and what those to be coded should be. Where
    /// several layers are watched, each counts as if its targets were met when the next one is. The contexts go no
    /// further than the first layer's attention.
    ///
    /// For gate and up, the wanted outputs are those of the model as it was. `ffn_down` adds to the hidden state,
    /// so it is wanted to bring that back to where it was, whatever went wrong before.
    ///
    /// # Errors
    /// [`TuningError::Compute`] or [`TuningError::Stopped`].
    pub fn watch(
        &mut self,
        ffn: &[LayerFfn],
        watch: &Watch<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Seen, TuningError> {
        self.attend(stop)?;
        let mut ahead = Ahead { stream: self.clone(), watch, stop, seen: Seen::default() };
        for (n, layer) in ffn.iter().enumerate() {
            ahead.stream.attend(stop)?;
            let met = ahead.observe(layer)?;
            if n + 1 < ffn.len() {
                ahead.stream.advance(&met, stop)?;
            }
        }
        Ok(ahead.seen)
    }
}

/// A stream that runs ahead.
struct Ahead<'a> {
    stream: Stream,
    watch: &'a Watch<'a>,
    stop: &'a dyn Fn() -> bool,
    seen: Seen,
}

/// One input of a layer in one context.
struct View {
    /// In the model as it is coded so far, (tokens, d_in).
    input: Tensor,
    /// What is lacking there or behind it, (tokens, any).
    lack: Option<Tensor>,
}

impl Ahead<'_> {
    /// Watches the layer in hand; its matrices with all targets met.
    fn observe(&mut self, ffn: &LayerFfn) -> Result<LayerFfn, TuningError> {
        let mut met = ffn.coded.as_ref().unwrap_or(&ffn.source).clone();
        self.observe_gate_up(&ffn.source, &mut met)?;
        let differs = self.stream.differs || ffn.coded.is_some();
        self.observe_down(&ffn.source, &mut met, differs)?;
        Ok(LayerFfn { source: ffn.source.clone(), coded: differs.then_some(met) })
    }

    fn observe_gate_up(
        &mut self,
        source: &FfnWeights,
        met: &mut FfnWeights,
    ) -> Result<(), TuningError> {
        let wanted = self.wanted(InputRole::FfnIn);
        let Some(any) = wanted.first() else { return Ok(()) };
        let seen = any.input();
        let model = self.stream.model.clone();
        let layer = &model.layers[self.stream.layer];
        let differs = self.stream.differs;
        let (input, lacks) = self.collect(seen, source.gate.dim(1)?, |p| {
            let input = layer.ffn_input(&p.coded, &model.config)?;
            let lack = || layer.ffn_input(&p.original, &model.config)? - &input;
            Ok(View { lack: differs.then(lack).transpose()?, input })
        })?;
        let moments = lacks.as_ref().and_then(|_| self.moments(&input));
        for tensor in wanted {
            let matrix = source.get(tensor.role);
            // What the outputs lack is what the matrix makes of what the input lacks.
            let shortfall = |lack: &Tensor| matrix.matmul(lack);
            let shortfalls = lacks.as_ref().map(|lacks| lacks.try_map(shortfall)).transpose()?;
            self.retarget(tensor, matrix, (shortfalls, moments.as_ref()), met)?;
        }
        self.seen.inputs.insert(seen, input);
        Ok(())
    }

    fn observe_down(
        &mut self,
        source: &FfnWeights,
        met: &mut FfnWeights,
        differs: bool,
    ) -> Result<(), TuningError> {
        let wanted = self.wanted(InputRole::FfnDown);
        let [tensor] = wanted[..] else { return Ok(()) };
        let model = self.stream.model.clone();
        let layer = &model.layers[self.stream.layer];
        let seen =
            |ffn: &FfnWeights, x: &Tensor| ffn.down_input(&layer.ffn_input(x, &model.config)?);
        let (input, lacks) = self.collect(tensor.input(), source.down.dim(1)?, |p| {
            let input = seen(met, &p.coded)?;
            let lack = || -> Result<Tensor, candle_core::Error> {
                let change = (seen(source, &p.original)? - &input)?;
                (&p.original - &p.coded)? + linear(&change, &source.down)?
            };
            Ok(View { lack: differs.then(lack).transpose()?, input })
        })?;
        let moments = lacks.as_ref().and_then(|_| self.moments(&input));
        self.retarget(tensor, &source.down, (lacks, moments.as_ref()), met)?;
        self.seen.inputs.insert(tensor.input(), input);
        Ok(())
    }

    /// The matrices of the layer in hand that read `input` and will be coded.
    fn wanted(&self, input: InputRole) -> Vec<MatrixId> {
        let layer = self.stream.layer;
        let all = input.readers().map(|role| MatrixId { layer, role });
        all.filter(|t| self.watch.tensors.contains(t)).collect()
    }

    /// The input `seen`, of `d_in` values, over all contexts, and the means of lack x^T where something lacks and there
    /// is a second moment.
    fn collect(
        &self,
        seen: InputId,
        d_in: usize,
        view: impl Fn(&Passage) -> Result<View, TuningError>,
    ) -> Result<(CalibratedInput, Option<Lacks>), TuningError> {
        let Self { stream, watch, stop, .. } = self;
        let mut growing = GrowingInput::new(d_in, watch.max_moment_dim);
        let mut scratch = MomentScratch::default();
        let (mut n_before, mut sums) = ([0; 2], [Shortfall::default(), Shortfall::default()]);
        for (number, passage) in stream.passages.iter().enumerate() {
            let weigh = |rows: Tensor| match &stream.weights {
                Some(weights) => weights.apply(seen, number, &rows),
                None => Ok(rows),
            };
            let View { input, lack } = view(passage)?;
            let (input, lack) = (weigh(input)?, lack.map(weigh).transpose()?);
            let rows = input.flatten_all()?.to_vec1::<f32>()?;
            let kind = passage.kind as usize;
            let at = (passage.kind, n_before[kind]);
            growing.add(at, &rows, &watch.sampling, watch.mul_mat, &mut scratch);
            n_before[kind] += input.dim(0)? as u64;
            if let Some(lack) = lack.filter(|_| d_in <= watch.max_moment_dim) {
                sums[kind].add(&lack, &input, watch.mul_mat)?;
            }
            stop_if(*stop)?;
        }
        let lacks = match sums.each_ref().map(|sum| sum.mean(d_in)) {
            [fitted, held_out] => fitted?.zip(held_out?),
        };
        Ok((growing.finish(), lacks.map(|(fitted, held_out)| Lacks { fitted, held_out })))
    }

    /// What retargeting needs to know of an input; `None` where there are no second moments or that to fit to cannot be
    /// inverted.
    fn moments(&self, input: &CalibratedInput) -> Option<Moments> {
        let fitted = Retarget::new(&input.second_moment()?, input.d(), self.watch.damping)?;
        Some(Moments { fitted, held_out: input.holdout_moment()? })
    }

    /// Puts what `matrix` should be into `met` and among what is seen, if that can be told and helps.
    fn retarget(
        &mut self,
        tensor: MatrixId,
        matrix: &Tensor,
        (shortfalls, moments): (Option<Lacks>, Option<&Moments>),
        met: &mut FfnWeights,
    ) -> Result<(), TuningError> {
        let Some((shortfalls, moments)) = shortfalls.zip(moments) else { return Ok(()) };
        let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let (d_out, d_in) = matrix.dims2()?;
        let (weights, shape) = (flat(matrix)?, MatrixShape::new(d_in, d_out));
        let target = moments.fitted.target(&weights, &flat(&shortfalls.fitted)?);
        let Some(target) = target else { return Ok(()) };
        let (both, held_out) = ((&*weights, &*target), flat(&shortfalls.held_out)?);
        if retarget_gain(both, &held_out, &moments.held_out, shape, self.watch.mul_mat) > 0.0 {
            met.replace(tensor.role, target.clone())?;
            self.seen.targets.insert(tensor, target);
        }
        Ok(())
    }
}

/// Second moments of an input, made once for all matrices that read it.
struct Moments {
    fitted: Retarget,
    /// [d_in, d_in].
    held_out: Vec<f32>,
}

/// The means of lack x^T over the contexts to fit to and the held-out ones, (any, d_in).
struct Lacks {
    fitted: Tensor,
    held_out: Tensor,
}

impl Lacks {
    fn try_map(
        &self,
        f: impl Fn(&Tensor) -> Result<Tensor, candle_core::Error>,
    ) -> Result<Self, TuningError> {
        Ok(Self { fitted: f(&self.fitted)?, held_out: f(&self.held_out)? })
    }
}

/// Sum over tokens of lack x^T.
#[derive(Default)]
struct Shortfall {
    n_tokens: usize,
    /// [d_in, any].
    sum: Vec<f32>,
    product: Vec<f32>,
}

impl Shortfall {
    fn add(
        &mut self,
        lack: &Tensor,
        input: &Tensor,
        mul_mat: &dyn MatMul,
    ) -> Result<(), TuningError> {
        let by_value = |x: &Tensor| x.t()?.flatten_all()?.to_vec1::<f32>();
        let n = input.dim(0)?;
        let (inputs, lacks) = (by_value(input)?, by_value(lack)?);
        let size = inputs.len() / n * (lacks.len() / n);
        self.sum.resize(size, 0.0);
        self.product.resize(size, 0.0);
        mul_mat.mul_mat(&inputs, &lacks, n, &mut self.product);
        self.sum.iter_mut().zip(&self.product).for_each(|(s, p)| *s += p);
        self.n_tokens += n;
        Ok(())
    }

    /// The mean, (any, d_in); `None` of no tokens.
    fn mean(&self, d_in: usize) -> Result<Option<Tensor>, TuningError> {
        if self.n_tokens == 0 {
            return Ok(None);
        }
        let mean = |sum: &f32| (f64::from(*sum) / self.n_tokens as f64) as f32;
        let values: Vec<f32> = self.sum.iter().map(mean).collect();
        let rows = values.len() / d_in;
        Ok(Some(Tensor::from_vec(values, (rows, d_in), &Device::Cpu)?))
    }
}
