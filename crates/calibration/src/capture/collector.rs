//! The observer that sums up what it sees.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use format::{InputId, InputRole, MatrixId};
use llama::{Computed, Node, Observer};
use numerics::{MatMul, TiledMatMul};

use super::{CaptureError, CaptureParams};
use crate::moment::packed_len;
use crate::{CalibratedInput, GrowingInput, MomentScratch, PassageKind, Sampling};

/// Sums up the inputs of the products with FFN weights.
pub struct Collector<'a> {
    inputs: BTreeMap<InputId, Growing>,
    sampling: Sampling,
    max_moment_dim: usize,
    max_expert_bytes: usize,
    /// Tokens of each kind seen before this batch.
    n_before: [u64; 2],
    /// Tokens of this batch.
    n_batch: usize,
    kind: PassageKind,
    scratch: MomentScratch,
    rows: Vec<f32>,
    /// The first matrix that read each input in this batch, and the input's name: the others must read the same.
    shared: BTreeMap<InputId, (MatrixId, String)>,
    stop: &'a (dyn Fn() -> bool + Sync),
    pub(super) error: Option<CaptureError>,
    pub(super) spent: Duration,
    pub(super) flops: f64,
}

/// What is known about an input so far.
struct Growing {
    data: GrowingInput,
    n_in_batch: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(params: &CaptureParams<'a>) -> Self {
        let sampling = Sampling::new(
            (params.n_fitted, params.n_samples),
            (params.n_held_out, params.n_holdout_samples),
            params.seed,
        );
        let growing =
            |d: usize| Growing { data: GrowingInput::new(d, params.max_moment_dim), n_in_batch: 0 };
        Self {
            inputs: params.inputs.iter().map(|(&input, &d)| (input, growing(d))).collect(),
            sampling,
            max_moment_dim: params.max_moment_dim,
            max_expert_bytes: params.max_expert_bytes,
            n_before: [0; 2],
            n_batch: 0,
            kind: PassageKind::Fitted,
            scratch: MomentScratch::default(),
            rows: Vec::new(),
            shared: BTreeMap::new(),
            stop: params.stop,
            error: None,
            spent: Duration::ZERO,
            flops: 0.0,
        }
    }

    /// The next batch, of `n` tokens, is part of a context of `kind`.
    pub(super) fn begin(&mut self, kind: PassageKind, n: usize) {
        (self.kind, self.n_batch) = (kind, n);
        self.shared.clear();
        self.inputs.values_mut().for_each(|i| i.n_in_batch = 0);
    }

    /// The batch is over.
    pub(super) fn end(&mut self) -> Result<(), CaptureError> {
        let n = self.n_batch;
        self.n_before[self.kind as usize] += n as u64;
        match self.inputs.iter().find(|(_, i)| i.n_in_batch != n) {
            None => Ok(()),
            Some((input, state)) => Err(CaptureError::Graph {
                input: input.stem(),
                reason: format!("{} of {n} tokens were seen", state.n_in_batch),
            }),
        }
    }

    pub(super) fn take(&mut self) -> BTreeMap<InputId, CalibratedInput> {
        std::mem::take(&mut self.inputs)
            .into_iter()
            .map(|(input, i)| (input, i.data.finish()))
            .collect()
    }

    /// The FFN weight that `node` multiplies, if it is one whose input is wanted.
    fn weight(&self, node: Node<'_>) -> Option<MatrixId> {
        if !["MUL_MAT", "MUL_MAT_ID"].contains(&node.op()) {
            return None;
        }
        let tensor = MatrixId::of_weight(node.source(0)?.name())?;
        self.inputs.contains_key(&tensor.input()).then_some(tensor)
    }

    /// Whether `tensor` is the first matrix of its site in this batch. All of them must have the same input.
    fn is_first(&mut self, tensor: MatrixId, node: Node<'_>) -> bool {
        let name = node.source(1).map_or("", Node::name);
        let new = || (tensor, name.to_owned());
        let (matrix, first) = self.shared.entry(tensor.input()).or_insert_with(new);
        if *matrix == tensor {
            name.clone_into(first); // of the next part of the batch
        } else if *first != name {
            let reason = format!("its matrices have different inputs ({first} and {name})");
            let input = tensor.input().stem();
            self.error.get_or_insert(CaptureError::Graph { input, reason });
        }
        *matrix == tensor
    }

    /// Number of experts if this is a product of experts whose second moment is formed, and whether those of single experts are
    /// kept: only if those of all layers fit into memory.
    fn experts_of(&self, node: Computed<'_>, d: usize) -> Option<(usize, bool)> {
        if node.op() != "MUL_MAT_ID" || d > self.max_moment_dim {
            return None;
        }
        let n_experts = node.source(0)?.dims()[2];
        let of_experts =
            |input: &&InputId| [InputRole::ExpsIn, InputRole::ExpsDown].contains(&input.role);
        let n_inputs = self.inputs.keys().filter(of_experts).count();
        let sizes = [n_experts, n_inputs, size_of::<f32>()];
        let n_bytes = sizes.into_iter().try_fold(packed_len(d)?, usize::checked_mul);
        Some((n_experts, n_bytes.is_some_and(|n| n <= self.max_expert_bytes)))
    }

    /// Adds the rows that were collected of `input` to what its experts have seen.
    fn add_by_expert(
        &mut self,
        node: Computed<'_>,
        (input, of): (InputId, (usize, bool)),
        per_token: usize,
    ) -> Result<f64, CaptureError> {
        let error =
            |reason: &str| CaptureError::Graph { input: input.stem(), reason: reason.to_owned() };
        let state = self.inputs.get_mut(&input).expect("checked by weight");
        let d = state.data.d();
        let (mut rows, mut experts) = (Vec::new(), Vec::new());
        for (token, ids) in node.source_ids(2)?.enumerate() {
            for (j, id) in ids.iter().enumerate() {
                let row = token * per_token + j % per_token;
                let x = self.rows.get(row * d..(row + 1) * d);
                rows.extend_from_slice(x.ok_or_else(|| error("fewer inputs than experts in use"))?);
                let expert = usize::try_from(*id).ok().filter(|id| *id < of.0);
                experts.push(expert.ok_or_else(|| error("an expert that the model has not"))?);
            }
        }
        let by = (&TiledMatMul as &dyn MatMul, &mut self.scratch);
        Ok(state.data.add_by_expert(&rows, &experts, of, by))
    }

    fn add(&mut self, node: Computed<'_>) -> Result<(), CaptureError> {
        let Some(tensor) = self.weight(*node) else { return Ok(()) };
        let input = tensor.input();
        let state = self.inputs.get_mut(&input).expect("checked by weight");
        let d = state.data.d();
        self.rows.clear();
        for row in node.source_rows(1)? {
            if row.len() != d {
                let reason = format!("inputs have {} values instead of {d}", row.len());
                return Err(CaptureError::Graph { input: input.stem(), reason });
            }
            self.rows.extend_from_slice(row);
        }
        if !self.rows.iter().all(|v| v.is_finite()) {
            return Err(CaptureError::NonFinite { input: input.stem() });
        }
        // Each of the experts in use may have an input of its own.
        let per_token = match (node.op(), node.source(1)) {
            ("MUL_MAT_ID", Some(x)) => x.dims()[1].max(1),
            _ => 1,
        };
        let n = self.rows.len() / d / per_token;
        let first = self.n_before[self.kind as usize] + state.n_in_batch as u64;
        state.n_in_batch += n;
        let at = (self.kind, first);
        if let Some(of) = self.experts_of(node, d)
            && self.kind == PassageKind::Fitted
        {
            self.flops += self.add_by_expert(node, (input, of), per_token)?;
        }
        let state = self.inputs.get_mut(&input).expect("checked by weight");
        self.flops += state.data.add(
            at,
            (&self.rows, per_token),
            &self.sampling,
            &TiledMatMul,
            &mut self.scratch,
        );
        Ok(())
    }
}

impl Observer for Collector<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        match self.weight(node) {
            // Matrices that read one input have one observation.
            Some(tensor) => self.is_first(tensor, node),
            None => false,
        }
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        let start = Instant::now();
        if let Err(error) = self.add(node) {
            self.error.get_or_insert(error);
        }
        self.spent += start.elapsed();
        if (self.stop)() {
            self.error.get_or_insert(CaptureError::Stopped);
        }
        self.error.is_none()
    }

    /// Layers behind the last input and the output matrix need not be computed.
    fn has_enough(&self) -> bool {
        self.inputs.values().all(|input| input.n_in_batch == self.n_batch)
    }
}
