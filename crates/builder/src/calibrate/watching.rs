//! Running the model on the contexts and collecting what its matrices see.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use calibration::capture::{Capture, CaptureParams, Contexts, Timing};
use calibration::{CalibratedInput, PassageKind};
use format::InputId;
use llama::{Model, Token};
use program::Reporter;
use program::progress::{Eta, duration};

use super::CalibrationJob;
use super::summary::PlainTime;

/// Lines of progress on plain output.
const PROGRESS_LINES: usize = 16;

/// The model and what it is to be run on.
pub(super) struct Run<'a> {
    pub(super) job: &'a CalibrationJob,
    pub(super) model: &'a Model,
    pub(super) contexts: &'a Contexts,
    pub(super) tokens: &'a [Token],
    /// Samples to keep: of fitted and of held-out tokens.
    pub(super) samples: (u64, u64),
    pub(super) reporter: &'a Reporter,
    pub(super) stop: &'a (dyn Fn() -> bool + Sync),
}

/// What was seen, and how long it took; nothing if the model was not run.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) inputs: BTreeMap<InputId, CalibratedInput>,
    pub(super) times: Option<(Timing, PlainTime)>,
}

impl Run<'_> {
    /// Runs the model and collects what its inputs of these `lengths` see.
    pub(super) fn watch(&self, lengths: &BTreeMap<InputId, usize>) -> Result<Seen> {
        let (job, contexts) = (self.job, self.contexts);
        let params = CaptureParams {
            inputs: lengths,
            max_moment_dim: job.max_h_dim,
            max_expert_bytes: job.max_expert_mib.saturating_mul(1 << 20),
            n_ctx: contexts.n_ctx(),
            n_fitted: contexts.n_tokens(PassageKind::Fitted) as u64,
            n_held_out: contexts.n_tokens(PassageKind::HeldOut) as u64,
            n_samples: self.samples.0,
            n_holdout_samples: self.samples.1,
            seed: job.seed,
            n_threads: job.n_threads,
            stop: self.stop,
        };
        let mut capture = Capture::new(self.model, &params)?;
        let plain = self.run_contexts(&mut capture)?;
        let times = Some((capture.timing(), plain));
        Ok(Seen { inputs: capture.finish(), times })
    }

    /// Runs all contexts, the first ones also without watching if asked to.
    fn run_contexts(&self, capture: &mut Capture<'_, '_>) -> Result<PlainTime> {
        let (contexts, reporter) = (self.contexts, self.reporter);
        let mut plain = PlainTime::default();
        let mut eta = Eta::new(contexts.len() as u64);
        let lines = !std::io::stderr().is_terminal();
        reporter.stage("running the model", contexts.len() as u64);
        for (i, (kind, passage)) in contexts.passages(self.tokens).enumerate() {
            let before = capture.timing();
            capture.run(kind, passage)?;
            if i < self.job.time_plain {
                let now = capture.timing();
                let (forward, sums) =
                    (now.forward - before.forward, now.accumulation - before.accumulation);
                plain.n_contexts += 1;
                plain.watched += forward + sums;
                plain.accumulation += sums;
                plain.plain += capture.time_plain(passage)?;
            }
            reporter.advance(1);
            let left = eta.advance(1);
            if lines && is_line(i + 1, contexts.len()) {
                reporter.line(&format!("{} of {} contexts, {left} left", i + 1, contexts.len()));
            }
        }
        let took = capture.timing();
        reporter.line(&format!("ran the model in {}", seconds(took.forward + took.accumulation)));
        Ok(plain)
    }
}

fn seconds(time: Duration) -> String {
    duration(time.as_secs_f64())
}

/// Whether `done` of `total` contexts are worth a line: the first, and about every sixteenth part.
fn is_line(done: usize, total: usize) -> bool {
    done == 1 || done * PROGRESS_LINES / total != (done - 1) * PROGRESS_LINES / total
}
