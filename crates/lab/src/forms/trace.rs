//! Inputs of every FFN and the size of the hidden state, from one pass of the dense model.

use std::collections::BTreeMap;

use format::{Branch, MatrixId, Role, Width};
use ggml::Type;
use llama::{Computed, Context, ContextParams, Model, Node, Observer, Outputs};

use crate::forms::Error;
use crate::forms::texts::Piece;

/// What a pass saw.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Inputs of gate and up of each layer, token by token, `[n_embd, n]`.
    pub inputs: BTreeMap<usize, Vec<f32>>,
    /// Mean square norm of the hidden state behind the last layer.
    pub hidden: f64,
}

/// Samples of a layer that are kept, at most.
pub const MAX_SAMPLES: usize = 192;

struct Watcher {
    last: String,
    inputs: BTreeMap<usize, Vec<f32>>,
    sum: f64,
    n: usize,
}

impl Watcher {
    /// The layer whose FFN this product begins: that with the one matrix of the hidden state that every layer has.
    fn layer(node: Node<'_>) -> Option<usize> {
        if node.op() != "MUL_MAT" {
            return None;
        }
        let tensor = MatrixId::of_weight(node.source(0)?.name())?;
        let first = Role::required(Branch::Plain).find(|role| role.d_in() == Width::Embedding);
        (first == Some(tensor.role)).then_some(tensor.layer)
    }
}

impl Observer for Watcher {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name() == self.last || Self::layer(node).is_some()
    }

    fn observe(&mut self, computed: Computed<'_>) -> bool {
        if computed.name() == self.last {
            let Ok(rows) = computed.rows() else { return false };
            for h in rows {
                self.sum += h.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
                self.n += 1;
            }
            return true;
        }
        let Some(layer) = Self::layer(*computed) else { return true };
        let Ok(rows) = computed.source_rows(1) else { return false };
        let kept = self.inputs.entry(layer).or_default();
        for x in rows {
            if kept.len() < MAX_SAMPLES * x.len() {
                kept.extend(x);
            }
        }
        true
    }
}

/// Runs the dense `model` over `pieces`.
///
/// # Errors
/// [`Error::Llama`], or [`Error::Unfit`] if the model shows no FFN or no hidden state.
pub fn trace(model: &Model, pieces: &[Piece], n_threads: i32) -> Result<Trace, Error> {
    let watcher = Watcher {
        last: format!("l_out-{}", model.n_layer() - 1),
        inputs: BTreeMap::new(),
        sum: 0.0,
        n: 0,
    };
    let n = pieces.iter().map(|p| p.tokens.len()).max().unwrap_or(1) as u32;
    let params = ContextParams { n_ctx: n, n_batch: n, n_threads, cache_type: Type::F32 };
    let mut context = Context::with_observer(model, params, watcher)?;
    for piece in pieces {
        context.clear();
        context.decode(&piece.tokens, Outputs::All)?;
    }
    let watcher = context.observer();
    if watcher.n == 0 || watcher.inputs.is_empty() {
        let reason = "its graph shows no hidden state or no FFN of the usual kind".to_owned();
        return Err(Error::Unfit { path: model.path().to_owned(), reason });
    }
    Ok(Trace { inputs: watcher.inputs.clone(), hidden: watcher.sum / watcher.n as f64 })
}
