//! Contexts on their way through the layers of a model, as it was and as it is coded so far, run by llama.cpp.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calibration::PassageKind;
use format::{MatrixId, ModelMap, Site};
use ggml::Type;
use ggml::gguf::GgufFile;
use llama::{Carried, ContextParams, Layers, LlamaError, Model, Part, Point, StandIn, Token};

use crate::check::check_tokens;
use crate::error::{TuningError, stop_if};
use crate::kept::KeptStates;
use crate::states::States;
use crate::weights::TokenWeights;

/// Matrices in the place of the source's, [d_in, d_out].
pub type Decoded = BTreeMap<MatrixId, Vec<f32>>;

/// The hidden states of all contexts in the same place, in the model as it was and as it is coded so far.
pub struct Stream<'m> {
    pub(crate) layers: Layers<'m>,
    pub(crate) file: &'m GgufFile,
    map: &'m ModelMap,
    folder: PathBuf,
    /// Values of a state to a token.
    pub(crate) width: usize,
    pub(crate) contexts: Vec<Context>,
    pub(crate) source: Side,
    pub(crate) coded: Side,
    /// The source's states in places where they have been before.
    kept: Option<KeptStates>,
    /// Whether a matrix was replaced so far.
    pub(crate) differs: bool,
    /// How much the tokens count; all alike if not known.
    pub(crate) weights: Option<Arc<TokenWeights>>,
    /// How far the states are apart where both sides were last in the same place.
    pub(crate) distance: f64,
}

/// The text of a context.
pub(crate) struct Context {
    pub(crate) kind: PassageKind,
    pub(crate) tokens: Vec<Token>,
}

/// One of the two models.
pub(crate) struct Side {
    pub(crate) states: States,
    /// What layers share, bytes of each context in the memory of [`States`], and how many; none where they share nothing.
    shared: Option<(States, usize)>,
    pub(crate) at: Place,
}

impl Side {
    /// Before the first layer.
    fn new(folder: &Path, n_contexts: usize, size: ContextSize) -> io::Result<Self> {
        let shared = match size.n_shared {
            0 => None,
            n => Some((States::new(folder, n_contexts, n.div_ceil(size_of::<f32>()))?, n)),
        };
        let states = States::new(folder, n_contexts, size.n_values)?;
        Ok(Self { states, shared, at: Place::before(0) })
    }

    fn copy(&self, folder: &Path) -> io::Result<Self> {
        let shared = self.shared.as_ref();
        let shared = shared.map(|(states, n)| Ok::<_, io::Error>((states.copy(folder)?, *n)));
        Ok(Self { states: self.states.copy(folder)?, shared: shared.transpose()?, at: self.at })
    }

    /// Computes `part` from the state of the context `number`, which has `tokens`; its gain.
    pub(crate) fn run(
        &mut self,
        layers: &mut Layers<'_>,
        part: &Part<'_>,
        (number, tokens): (usize, &[Token]),
        out: &mut [f32],
    ) -> Result<f32, LlamaError> {
        let shared = self.shared.as_mut();
        let shared = shared.map_or(&mut [][..], |(states, n)| {
            &mut bytemuck::cast_slice_mut::<f32, u8>(states.context_mut(number))[..*n]
        });
        layers.run(part, tokens, Carried { state: self.states.context(number), shared }, out)
    }

    /// The same for a part that ends with a state as wide as that here: it, and the gain.
    pub(crate) fn state_behind(
        &mut self,
        layers: &mut Layers<'_>,
        part: &Part<'_>,
        context: (usize, &[Token]),
    ) -> Result<(Vec<f32>, f32), LlamaError> {
        let mut state = vec![0.0; self.states.context(context.0).len()];
        let gain = self.run(layers, part, context, &mut state)?;
        Ok((state, gain))
    }

    /// Takes over what `other` has of the context `number`.
    fn copy_context(&mut self, other: &Self, number: usize) {
        self.states.context_mut(number).copy_from_slice(other.states.context(number));
        if let (Some((to, _)), Some((from, _))) = (&mut self.shared, &other.shared) {
            to.context_mut(number).copy_from_slice(from.context(number));
        }
    }
}

/// What a context takes between two layers.
#[derive(Clone, Copy)]
struct ContextSize {
    /// Of the state.
    n_values: usize,
    /// Bytes that layers share.
    n_shared: usize,
}

/// Where the states are; places further on are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Before this layer, or in it.
    pub(crate) layer: usize,
    /// Whether in it, behind what comes before its first site.
    is_middle: bool,
}

impl Place {
    pub(crate) fn before(layer: usize) -> Self {
        Self { layer, is_middle: false }
    }

    /// Its number among all places, in order.
    fn number(self) -> usize {
        2 * self.layer + usize::from(self.is_middle)
    }

    /// The place as llama.cpp is asked for it; `site`: name of a matrix of the layer's first site.
    pub(crate) fn point(self, site: &str) -> Point<'_> {
        match self {
            Self { layer, is_middle: false } => Point::Before(layer),
            Self { layer, is_middle: true } => Point::Middle { layer, weight: site },
        }
    }
}

/// Checks that the parts of `model` can be run that a [`Stream`] through the layers of `map` needs, and that it has all of
/// `tokens`. Nothing is computed.
///
/// # Errors
/// [`TuningError::Token`], or [`TuningError::Llama`] with what cannot be run.
pub fn check(model: &Model, map: &ModelMap, tokens: &[i32]) -> Result<(), TuningError> {
    check_tokens(tokens, model.n_vocab())?;
    let mut layers = Layers::new(model, params(8, 1))?;
    let last = map.sites().last().map_or(0, |site| site.input.layer);
    let width = layers.width(Point::Before(1))?;
    for layer in 0..=last {
        layers.check(Point::Before(layer + 1), width)?;
    }
    for site in map.sites() {
        let (weight, layer) = (site.matrices[0].id.weight(), site.input.layer);
        layers.check(Point::Input { layer, weight: &weight }, site.matrices[0].shape.d_in)?;
    }
    Ok(())
}

/// Bytes of memory that a [`Stream`] through the layers of `map` takes at least besides the mapped model: the matrices of
/// one layer twice, and what is made of one second moment, which are formed of inputs up to `max_moment_dim`.
#[must_use]
pub fn stream_bytes(map: &ModelMap, max_moment_dim: usize) -> u64 {
    let mut layers: BTreeMap<usize, u64> = BTreeMap::new();
    let mut longest = 0;
    for site in map.sites() {
        let weights: u64 = site.matrices.iter().map(|m| m.shape.n_weights() as u64).sum();
        let layer = layers.entry(site.input.layer).or_default();
        *layer = layer.saturating_add(weights);
        let d_in = site.matrices[0].shape.d_in;
        longest = longest.max(if d_in <= max_moment_dim { d_in as u64 } else { 0 });
    }
    let layer = layers.into_values().max().unwrap_or(0);
    // Both moments as triangles and the held-out one whole in F32, a factor in F64.
    (2 * size_of::<f32>() as u64).saturating_mul(layer).saturating_add(16 * longest * longest)
}

pub(crate) fn params(n_ctx: usize, n_threads: usize) -> ContextParams {
    let n = u32::try_from(n_ctx).unwrap_or(u32::MAX);
    let n_threads = i32::try_from(n_threads).unwrap_or(i32::MAX);
    ContextParams { n_ctx: n, n_batch: n, n_threads, cache_type: Type::F16 }
}

impl<'m> Stream<'m> {
    /// Contexts before the first layer of `model`, which is that in `file` and has the matrices of `map`. The states are
    /// kept in `folder`.
    ///
    /// # Errors
    /// [`TuningError::Llama`] or [`TuningError::Io`].
    pub fn new(
        (model, file, map): (&'m Model, &'m GgufFile, &'m ModelMap),
        contexts: impl IntoIterator<Item = (PassageKind, Vec<Token>)>,
        folder: &Path,
        n_threads: usize,
    ) -> Result<Self, TuningError> {
        let context = |(kind, tokens)| Context { kind, tokens };
        let contexts: Vec<Context> = contexts.into_iter().map(context).collect();
        let n_ctx = contexts.iter().map(|c| c.tokens.len()).max().unwrap_or(1);
        let mut layers = Layers::new(model, params(n_ctx, n_threads))?;
        let width = layers.width(Point::Before(1))?;
        let size = ContextSize { n_values: n_ctx * width, n_shared: layers.n_shared()? };
        let side = || Side::new(folder, contexts.len(), size);
        let (source, coded) = (side()?, side()?);
        Ok(Self {
            layers,
            file,
            map,
            folder: folder.to_owned(),
            width,
            contexts,
            source,
            coded,
            kept: None,
            differs: false,
            weights: None,
            distance: 0.0,
        })
    }

    /// Takes the source's states from `kept` where they are known, and keeps the others there.
    pub fn keep_source(&mut self, kept: KeptStates) {
        self.kept = Some(kept);
    }

    /// The source's state of a context in `place`, if it is known.
    pub(crate) fn known_state(&self, place: Place, number: usize) -> Option<&[f32]> {
        self.kept.as_ref()?.get(place.number(), number)
    }

    /// Puts the source's state of a context, which has reached `place`, where it is found again.
    pub(crate) fn set_source(&mut self, place: Place, number: usize, state: &[f32]) {
        self.source.states.context_mut(number).copy_from_slice(state);
        if let Some(kept) = &mut self.kept {
            kept.put(place.number(), number, state);
        }
    }

    /// All contexts of the source have reached `place`.
    pub(crate) fn reach(&mut self, place: Place) -> Result<(), TuningError> {
        self.source.at = self.source.at.max(place);
        Ok(self.kept.as_mut().map_or(Ok(()), |kept| kept.finish(place.number()))?)
    }

    /// Makes every token count as `weights` say.
    pub fn weigh(&mut self, weights: TokenWeights) {
        self.weights = Some(Arc::new(weights));
    }

    /// Whether [`Self::weigh`] was called.
    #[must_use]
    pub fn is_weighed(&self) -> bool {
        self.weights.is_some()
    }

    /// The layer that comes next.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.coded.at.layer
    }

    /// How far the coded model's hidden states are from those of the model as it was: the sum of the squared differences
    /// over the sum of squares, on all contexts, where they were compared last.
    #[must_use]
    pub fn distance(&self) -> f64 {
        self.distance
    }

    /// Takes all contexts through the next layer, in which `decoded` takes the place of what was there. `stop` is asked
    /// after each context.
    ///
    /// # Errors
    /// [`TuningError::Llama`] or [`TuningError::Stopped`].
    pub fn advance(
        &mut self,
        decoded: &Decoded,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TuningError> {
        let layer = self.layer();
        let stand_ins = self.stand_ins(decoded)?;
        self.differs |= !stand_ins.is_empty();
        self.go(Place::before(layer + 1), &stand_ins, stop)?;
        self.layers.release(layer);
        Ok(())
    }

    /// Sites of `layer`, in the order in which it uses them.
    pub(crate) fn sites(&self, layer: usize) -> impl Iterator<Item = &'m Site> + use<'m> {
        self.map.sites().iter().filter(move |site| site.input.layer == layer)
    }

    /// Name of a matrix of the first site of `layer`; empty if the layer has none.
    pub(crate) fn first_matrix(&self, layer: usize) -> String {
        self.sites(layer).next().map_or_else(String::new, |site| site.matrices[0].id.weight())
    }

    /// The place in `layer` behind what comes before its first site, or before the layer where the graph has no such place.
    pub(crate) fn middle(&mut self, layer: usize) -> Place {
        let weight = self.first_matrix(layer);
        let middle = Point::Middle { layer, weight: &weight };
        Place { layer, is_middle: self.layers.check(middle, self.width).is_ok() }
    }

    /// Takes both sides on to `to`, a place in the layer in hand or that behind it, unless they are there.
    pub(crate) fn go(
        &mut self,
        to: Place,
        stand_ins: &[StandIn],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TuningError> {
        let site = self.first_matrix(self.layer());
        let is_behind = self.source.at < to;
        for number in 0..self.contexts.len() {
            if is_behind {
                self.source_to(to, number, &site)?;
            }
            if self.differs && self.coded.at < to {
                let part = Part::new(self.coded.at.point(&site), to.point(&site));
                let part = Part { stand_ins, ..part };
                let tokens = &self.contexts[number].tokens;
                let (state, _) =
                    self.coded.state_behind(&mut self.layers, &part, (number, tokens))?;
                self.coded.states.context_mut(number).copy_from_slice(&state);
            } else if self.coded.at < to {
                self.coded.copy_context(&self.source, number);
            }
            stop_if(stop)?;
        }
        if is_behind {
            self.reach(to)?;
        }
        self.coded.at = self.coded.at.max(to);
        if self.source.at == self.coded.at {
            self.distance = self.measured_distance();
        }
        Ok(())
    }

    /// Takes the source's state of a context on to `to`.
    fn source_to(&mut self, to: Place, number: usize, site: &str) -> Result<(), TuningError> {
        let state = match self.known_state(to, number) {
            Some(known) => known.to_vec(),
            None => {
                let part = Part::new(self.source.at.point(site), to.point(site));
                let tokens = &self.contexts[number].tokens;
                self.source.state_behind(&mut self.layers, &part, (number, tokens))?.0
            }
        };
        self.set_source(to, number, &state);
        Ok(())
    }

    /// `decoded` as llama.cpp takes it.
    pub(crate) fn stand_ins(&self, decoded: &Decoded) -> Result<Vec<StandIn>, TuningError> {
        let stand_in = |(id, values): (&MatrixId, &Vec<f32>)| {
            let d_in = self.map.matrix(*id).map_or(0, |matrix| matrix.shape.d_in);
            Ok(StandIn::new(&id.weight(), values, d_in, stand_in_type(d_in))?)
        };
        decoded.iter().map(stand_in).collect()
    }

    fn measured_distance(&self) -> f64 {
        if !self.differs {
            return 0.0;
        }
        let (mut difference, mut size) = (0.0, 0.0);
        for number in 0..self.contexts.len() {
            let both = self.source.states.context(number).iter();
            for (a, b) in both.zip(self.coded.states.context(number)) {
                difference += f64::from(a - b).powi(2);
                size += f64::from(*a).powi(2);
            }
        }
        difference / size
    }

    /// Where everything is, to come back to.
    pub(crate) fn mark(&self) -> Result<Mark, TuningError> {
        let (source, coded) = (self.source.copy(&self.folder)?, self.coded.copy(&self.folder)?);
        Ok(Mark { source, coded, differs: self.differs, distance: self.distance })
    }

    /// Comes back to where everything was.
    pub(crate) fn return_to(&mut self, mark: Mark) {
        let Mark { source, coded, differs, distance } = mark;
        (self.source, self.coded, self.differs, self.distance) = (source, coded, differs, distance);
    }
}

/// The type in which matrices with rows of `d_in` values stand in. Q8_0 changes about 3e-5 of their energy, where codes
/// change a hundredth, and its products are those of bytes; the run-time's are as well.
fn stand_in_type(d_in: usize) -> Type {
    if d_in.is_multiple_of(Type::Q8_0.block_size()) { Type::Q8_0 } else { Type::F32 }
}

/// Where everything in a [`Stream`] was.
pub(crate) struct Mark {
    source: Side,
    coded: Side,
    differs: bool,
    distance: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_further_on_are_greater() {
        let places = [0, 1].map(|layer| [false, true].map(|is_middle| Place { layer, is_middle }));
        assert!(places.as_flattened().is_sorted());
    }
}
