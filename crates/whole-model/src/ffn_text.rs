//! What the FFN of a layer sees in the model as coded so far, and what should come out of it.

use calibration::PassageKind;
use format::MatrixId;
use llama::{Part, Point, StandIn};

use crate::error::{TuningError, stop_if};
use crate::stream::{Decoded, Place, Stream};
use crate::weights::roots_by_state;

/// Bytes of what is kept of one layer.
const BYTES: usize = 1 << 30;

/// Inputs of an FFN and what should come out of `ffn_down`, of one context.
#[derive(Debug)]
pub(crate) struct FfnContext {
    /// [d_in, tokens].
    pub(crate) input: Vec<f32>,
    /// [d_out, tokens].
    pub(crate) wanted: Vec<f32>,
    /// What an error at each token is multiplied with: one over the size of the hidden state behind the layer, by which
    /// the next norm divides it.
    pub(crate) roots: Vec<f32>,
}

impl Stream<'_> {
    /// What the FFN of the next layer sees on some contexts to fit to and some held-out ones, spread over all, where
    /// `decoded` is how its matrices are coded. Takes the source's states to the layer behind.
    ///
    /// The output is wanted as [`Self::watch`] says: to bring the hidden state back to where it was, or as it was in the
    /// source model where something stands between the two.
    pub(crate) fn ffn_text(
        &mut self,
        [up, down]: [MatrixId; 2],
        decoded: &Decoded,
        stop: &dyn Fn() -> bool,
    ) -> Result<[Vec<FfnContext>; 2], TuningError> {
        let layer = self.layer();
        let middle = self.middle(layer);
        self.go(middle, &[], stop)?;
        let replaced = self.stand_ins(decoded)?;
        let is_kept = self.kept_contexts();
        let mut texts = [Vec::new(), Vec::new()];
        for (number, is_kept) in is_kept.into_iter().enumerate() {
            if is_kept {
                let context = self.ffn_context([up, down], &replaced, number)?;
                texts[self.contexts[number].kind as usize].push(context);
            } else {
                self.source_context(down, number)?;
            }
            stop_if(stop)?;
        }
        self.source.at = Place::before(layer + 1);
        Ok(texts)
    }

    /// Which contexts are looked at: as many as there is room for, evenly spread over those of each kind.
    fn kept_contexts(&self) -> Vec<bool> {
        let n_tokens = self.contexts.iter().map(|c| c.tokens.len()).max().unwrap_or(1).max(1);
        let bytes = 2 * size_of::<f32>() * n_tokens * self.width;
        let room = (BYTES / bytes.max(1)).max(1);
        let step = self.contexts.len().div_ceil(room).max(1);
        let mut n_before = [0; 2];
        let mut is_kept = |kind: PassageKind| {
            let n = &mut n_before[kind as usize];
            *n += 1;
            (*n - 1) % step == 0
        };
        self.contexts.iter().map(|context| is_kept(context.kind)).collect()
    }

    /// Takes the source's state of one context behind the layer; the output of `down` in it.
    fn source_context(&mut self, down: MatrixId, number: usize) -> Result<Vec<f32>, TuningError> {
        let (weight, to) = (down.weight(), Point::Before(down.layer + 1));
        let first = self.first_matrix(down.layer);
        let tokens = &self.contexts[number].tokens;
        let part = Part { watched: Some(&weight), ..Part::new(self.source.at.point(&first), to) };
        let (state, _) = self.source.state_behind(&mut self.layers, &part, (number, tokens))?;
        self.source.states.context_mut(number).copy_from_slice(&state);
        Ok(self.layers.watched().output.clone())
    }

    /// What the FFN sees in the coded model and what is wanted of `down`, in one context.
    fn ffn_context(
        &mut self,
        [up, down]: [MatrixId; 2],
        replaced: &[StandIn],
        number: usize,
    ) -> Result<FfnContext, TuningError> {
        let source_output = self.source_context(down, number)?;
        let (of_up, of_down) = (up.weight(), down.weight());
        let d_in = self.file.require_tensor(&of_up)?.dims()[0];
        let first = self.first_matrix(down.layer);
        let from = self.coded.at.point(&first);
        let (layers, context) = (&mut self.layers, (number, &*self.contexts[number].tokens));
        let mut input = vec![0.0; context.1.len() * d_in];
        let before_up = Point::Input { layer: up.layer, weight: &of_up };
        self.coded.run(layers, &Part::new(from, before_up), context, &mut input)?;
        let part = Part::new(from, Point::Before(down.layer + 1));
        let part = Part { stand_ins: replaced, watched: Some(&of_down), ..part };
        let (found, gain) = self.coded.state_behind(layers, &part, context)?;
        let state = self.source.states.context(number);
        let roots = roots_by_state(state, self.layers.model().n_embd(), context.1.len());
        if gain == 0.0 {
            return Ok(FfnContext { input, wanted: source_output, roots });
        }
        let mut wanted = self.layers.watched().output.clone();
        let both = state.iter().zip(&found);
        wanted.iter_mut().zip(both).for_each(|(y, (there, here))| *y += (there - here) / gain);
        Ok(FfnContext { input, wanted, roots })
    }
}
