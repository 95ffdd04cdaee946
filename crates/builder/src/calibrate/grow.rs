//! A calibration that is there already, to be added to (`--resume`).

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use calibration::capture::Contexts;
use calibration::{
    CalibratedInput, Calibration, ModelId, PassageKind, Provenance, Share, TextSketch,
};
use format::InputId;
use llama::Token;

use super::CalibrationJob;
use crate::Source;

/// What there is.
pub(super) struct Before {
    calibration: Calibration,
}

impl Before {
    /// Opens the output of `job` and checks that contexts of `job` can be added to it, which sees inputs of these `lengths`.
    pub(super) fn open(
        job: &CalibrationJob,
        source: &Source,
        lengths: &BTreeMap<InputId, usize>,
    ) -> Result<Self> {
        let path = job.output.display();
        let calibration = Calibration::open(&job.output)?;
        let found = calibration.provenance();
        calibration.check_model(&source.model_id(found.model.sha256.clone())?)?;
        if found.tokens.is_empty() {
            bail!("--resume: {path} does not hold its tokens: make it anew with --force");
        }
        if (found.n_ctx as usize, found.seed) != (job.ctx, job.seed) {
            let (n_ctx, seed) = (found.n_ctx, found.seed);
            bail!("--resume: {path} was made with --ctx {n_ctx} and --seed {seed}: repeat them");
        }
        if calibration.has_inputs() == job.tokens_only {
            let is =
                if job.tokens_only { "holds what the model sees" } else { "holds the text alone" };
            let way_out = if job.tokens_only { "leave out" } else { "add" };
            bail!("--resume: {path} {is}: {way_out} --tokens-only");
        }
        // Everything is read, so that damage is found before the model runs.
        for (input, d) in lengths {
            let known = calibration.input(*input).map_err(|e| anyhow!("--resume: {e}"))?;
            let has_moment = known.holdout_moment.is_some();
            if known.d() != *d || has_moment != (*d <= job.max_h_dim) {
                bail!("--resume: {path} was made with another --max-h-dim: repeat that one");
            }
        }
        Ok(Self { calibration })
    }

    /// Contexts that there are.
    pub(super) fn n_contexts(&self) -> usize {
        let found = self.calibration.provenance();
        found.tokens.len() / (found.n_ctx as usize).max(1)
    }

    /// Checks that it is of this very model.
    pub(super) fn check_model(&self, model: &ModelId) -> Result<()> {
        Ok(self.calibration.check_model(model)?)
    }

    /// Samples to take of `contexts`, which are added: of fitted and of held-out tokens.
    pub(super) fn shares(&self, job: &CalibrationJob, contexts: &Contexts) -> (Share, Share) {
        let found = self.calibration.provenance();
        let share = |n_before, kind, limit| {
            let n_added = contexts.n_tokens(kind) as u64;
            Share { n_before, n_added, limit }
        };
        (
            share(found.n_fitted, PassageKind::Fitted, job.max_samples),
            share(found.n_held_out, PassageKind::HeldOut, job.max_holdout),
        )
    }

    /// Puts what there is in front of what was `seen` on other contexts, of which `added` tells.
    pub(super) fn merge(
        &self,
        added: Provenance,
        seen: &mut BTreeMap<InputId, CalibratedInput>,
        shares: (Share, Share),
        bos: Option<Token>,
    ) -> Result<Provenance> {
        for (input, new) in seen.iter_mut() {
            let merged = self.calibration.input(*input)?.merged(new, shares, added.seed);
            *new = merged.ok_or_else(|| anyhow!("--resume: {input} was collected otherwise"))?;
        }
        let found = self.calibration.provenance().clone();
        let tokens = [found.tokens, added.tokens].concat();
        let skipped = usize::from(bos.is_some());
        let passages = tokens.chunks(added.n_ctx as usize).map(|context| &context[skipped..]);
        Ok(Provenance {
            texts: [found.texts, added.texts].concat(),
            sketch: TextSketch::of(passages),
            n_fitted: found.n_fitted + added.n_fitted,
            n_held_out: found.n_held_out + added.n_held_out,
            tokens,
            ..added
        })
    }
}
