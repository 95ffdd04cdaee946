//! Contexts on their way through the layers of a model, as it was and as it is coded so far.

use std::sync::Arc;

use calibration::PassageKind;
use candle_core::Tensor;

use crate::TuningError;
use crate::costs::{Backward, ReadFfn};
use crate::layer::linear;
use crate::llama::{FfnWeights, Llama};
use crate::weights::TokenWeights;

/// Contexts that go through the layers and back together: their states are kept for every layer, and each layer's
/// matrices are read twice for all of them.
const CONTEXTS: usize = 8;

/// The FFN matrices of one layer, as they were and as they are.
#[derive(Clone)]
pub struct LayerFfn {
    /// Those of the source model.
    pub source: FfnWeights,
    /// Those that take their place, where any of them differs.
    pub coded: Option<FfnWeights>,
}

/// The hidden states of all contexts in the same place, in the model as it was and as it is coded so far.
#[derive(Clone)]
pub struct Stream {
    pub(crate) model: Arc<Llama>,
    pub(crate) passages: Vec<Passage>,
    /// The layer in hand.
    pub(crate) layer: usize,
    /// Whether its attention is behind already.
    attended: bool,
    /// Whether a matrix was replaced so far.
    pub(crate) differs: bool,
    /// How much the tokens count; all alike if not known.
    pub(crate) weights: Option<Arc<TokenWeights>>,
}

/// The hidden states of one context, (tokens, n_embd).
#[derive(Clone)]
pub(crate) struct Passage {
    pub(crate) kind: PassageKind,
    pub(crate) original: Tensor,
    pub(crate) coded: Tensor,
}

impl Stream {
    /// Contexts before the first layer.
    ///
    /// # Errors
    /// [`TuningError::Compute`], for tokens that the vocabulary does not have.
    pub fn new<'t>(
        model: Llama,
        contexts: impl IntoIterator<Item = (PassageKind, &'t [u32])>,
    ) -> Result<Self, TuningError> {
        let embedded = contexts.into_iter().map(|(kind, tokens)| {
            let original = model.embed(tokens)?;
            Ok(Passage { kind, coded: original.clone(), original })
        });
        let passages = embedded.collect::<Result<_, TuningError>>()?;
        Ok(Self {
            model: Arc::new(model),
            passages,
            layer: 0,
            attended: false,
            differs: false,
            weights: None,
        })
    }

    /// Makes every token count by the root of what an error in the output of a matrix costs there: of the trace of the
    /// Fisher information of the next-token distributions, estimated by one random direction per context. `ffn` reads the
    /// source's matrices. `heard` is told [`Self::n_weighing_steps`] times and says whether to stop.
    ///
    /// # Errors
    /// [`TuningError::Compute`], [`TuningError::Stopped`] or those of `ffn`.
    ///
    /// # Panics
    /// If the contexts are not before the first layer any more.
    pub fn weigh(
        &mut self,
        ffn: &ReadFfn<'_>,
        heard: &mut dyn FnMut() -> bool,
    ) -> Result<(), TuningError> {
        assert!(self.layer == 0 && !self.attended, "costs are those of all layers");
        let mut backward = Backward::new(&self.model, ffn, heard);
        let mut costs = Vec::with_capacity(self.passages.len());
        for passages in self.passages.chunks(CONTEXTS) {
            let embedded: Vec<&Tensor> = passages.iter().map(|p| &p.original).collect();
            costs.extend(backward.costs(&embedded, costs.len())?);
        }
        self.weights = Some(Arc::new(TokenWeights::new(&costs)?));
        Ok(())
    }

    /// Whether [`Self::weigh`] was called.
    #[must_use]
    pub fn is_weighed(&self) -> bool {
        self.weights.is_some()
    }

    /// What [`Self::weigh`] is in steps: every context through every layer and back.
    #[must_use]
    pub fn n_weighing_steps(&self) -> usize {
        2 * self.passages.len() * self.model.n_layers()
    }

    /// The layer that comes next.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Takes all contexts through the next layer, whose matrices are `ffn`. `stop` is asked after each context.
    ///
    /// # Errors
    /// [`TuningError::Compute`] or [`TuningError::Stopped`].
    pub fn advance(&mut self, ffn: &LayerFfn, stop: &dyn Fn() -> bool) -> Result<(), TuningError> {
        self.attend(stop)?;
        self.differs |= ffn.coded.is_some();
        let model = self.model.clone();
        let layer = &model.layers[self.layer];
        let coded = ffn.coded.as_ref().unwrap_or(&ffn.source);
        let after = |x: &Tensor, ffn: &FfnWeights| -> Result<Tensor, TuningError> {
            let down = ffn.down_input(&layer.ffn_input(x, &model.config)?)?;
            Ok((x + linear(&down, &ffn.down)?)?)
        };
        self.step(
            |passage| after(&passage.original, &ffn.source),
            |passage| after(&passage.coded, coded),
            stop,
        )?;
        (self.layer, self.attended) = (self.layer + 1, false);
        Ok(())
    }

    /// How far the coded model's hidden states are from those of the model as it was: the sum of the squared
    /// differences over the sum of squares, on all contexts.
    ///
    /// # Errors
    /// [`TuningError::Compute`].
    pub fn distance(&self) -> Result<f64, TuningError> {
        let square = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
        let (mut difference, mut size) = (0.0, 0.0);
        for Passage { original, coded, .. } in &self.passages {
            difference += f64::from(square(&(original - coded)?)?);
            size += f64::from(square(original)?);
        }
        Ok(difference / size)
    }

    /// Takes all contexts through the attention of the layer in hand, unless that is done.
    pub(crate) fn attend(&mut self, stop: &dyn Fn() -> bool) -> Result<(), TuningError> {
        if self.attended {
            return Ok(());
        }
        let model = self.model.clone();
        let layer = &model.layers[self.layer];
        let attended = |x: &Tensor| -> Result<Tensor, TuningError> {
            let rotation = model.rotation(x.dim(0)?)?;
            Ok(layer.attend(x, &rotation, &model.config)?)
        };
        self.step(|passage| attended(&passage.original), |passage| attended(&passage.coded), stop)?;
        self.attended = true;
        Ok(())
    }

    /// Replaces the states; those of the coded model are computed only where there is a difference.
    fn step(
        &mut self,
        original: impl Fn(&Passage) -> Result<Tensor, TuningError>,
        coded: impl Fn(&Passage) -> Result<Tensor, TuningError>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TuningError> {
        for passage in &mut self.passages {
            let next = original(passage)?.detach();
            passage.coded = if self.differs { coded(passage)?.detach() } else { next.clone() };
            passage.original = next;
            stop_if(stop)?;
        }
        Ok(())
    }
}

pub(crate) fn stop_if(mut stop: impl FnMut() -> bool) -> Result<(), TuningError> {
    if stop() { Err(TuningError::Stopped) } else { Ok(()) }
}
