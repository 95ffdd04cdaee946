//! A whole build: take over what is finished, encode the rest.

use std::collections::{BTreeMap, BTreeSet};

use format::MatrixId;
use program::progress::Eta;

use crate::build::{Build, Finished};
use crate::recapturing::Recapturing;
use crate::{Error, ExistingOutput, Origin, PlanItem, TensorResult, WorkFolder};

impl Build<'_> {
    /// Finishes every tensor of the plan, with checkpoints in `work`, using what `work` and `existing`
    /// hold already.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if asked to stop, or what goes wrong; finished tensors are kept.
    pub fn encode_all(
        &self,
        work: &mut WorkFolder,
        existing: Option<&ExistingOutput>,
    ) -> Result<BTreeMap<MatrixId, Finished>, Error> {
        let mut finished = self.take_over(work, existing)?;
        if let Some(output) = existing.filter(|_| !self.method.tunings().is_empty())
            && finished.values().any(|f| f.origin == Origin::Output)
            && self
                .plan
                .items
                .iter()
                .any(|i| finished.get(&i.tensor).is_none_or(|f| f.origin != Origin::Output))
        {
            // One of its tensors is damaged: the others cannot be tuned with it again.
            return Err(Error::tuned_as_a_whole(output.file().path()));
        }
        let todo: Vec<&PlanItem> =
            self.plan.items.iter().filter(|i| !finished.contains_key(&i.tensor)).collect();
        let layers: BTreeSet<usize> = todo.iter().map(|i| i.tensor.layer).collect();
        self.reporter.start(layers.len(), todo.len());
        let mut eta = Eta::new(todo.iter().map(|i| i.shape.n_weights() as u64).sum());
        let mut recapture = Recapturing::new(self, work.path())?;
        for (n, item) in todo.iter().enumerate() {
            self.stop_if_asked(work, finished.len())?;
            let inputs = recapture.inputs(item, work, existing, &finished)?;
            let layers_done = layers.iter().position(|l| *l == item.tensor.layer).unwrap_or(0);
            self.reporter.tensor(item.tensor.layer, layers_done, &item.tensor.stem());
            let encoder = self.encoder(inputs);
            let (result, sidecars) = encoder.encode(item, self.importance(item))?;
            work.save(item.tensor, &result, &sidecars)?;
            let left = eta.advance(item.shape.n_weights() as u64);
            self.reporter.tensor_done(&done_line(item, &result, n + 1, todo.len(), &left));
            finished
                .insert(item.tensor, Finished { result, origin: Origin::Built, in_output: false });
        }
        work.commit()?;
        Ok(finished)
    }
}

/// How much text stands behind the codes of experts.
fn seen_by_experts(inputs: &[u64]) -> String {
    let mut sorted = inputs.to_vec();
    sorted.sort_unstable();
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return String::new() };
    let blind = sorted.iter().filter(|n| **n == 0).count();
    let blind = if blind > 0 { format!(", {blind} of them none") } else { String::new() };
    format!(
        ", experts saw {least} to {most} inputs, half of them {} or more{blind}",
        sorted[sorted.len() / 2]
    )
}

/// `[ 3/90] blk.1.ffn_up: gap 0.412, 3.12 bits/weight, 1.2 s; ETA 2 min 05 s`.
fn done_line(item: &PlanItem, result: &TensorResult, n: usize, total: usize, eta: &str) -> String {
    let outcome = match result.scheme {
        Some(_) => format!("{:.2} bits/weight", item.bits_per_weight()),
        None => "above --gap-tol, stays dense".to_owned(),
    };
    let experts = seen_by_experts(&result.expert_inputs);
    format!(
        "[{n:>width$}/{total}] {}: gap {:.4}, {outcome}{experts}, {}; ETA {eta}",
        item.tensor,
        result.gap,
        program::progress::duration(result.seconds),
        width = total.to_string().len(),
    )
}
