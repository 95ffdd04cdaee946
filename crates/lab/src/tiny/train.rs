//! The training loop.

use serde::{Deserialize, Serialize};

use crate::tiny::Error;
use crate::tiny::batch::{Batch, Encoded};
use crate::tiny::model::{Config, Model, Parameter, Score};
use crate::tiny::optimizer::AdamW;
use crate::tiny::tasks::{Example, Task};

/// Parts of a batch whose derivatives are taken at the same time, each on a thread of its own, and added in
/// order: the sum does not depend on the number of cores. Products inside of a part are better left on one thread.
const PARTS: usize = 2;
/// Tokens of a row when single examples are scored: the longest has 19.
const SCORE_LENGTH: usize = 20;
/// Examples scored at a time.
const SCORE_ROWS: usize = 64;

/// How often a task is drawn: copying is learned long before the others, sums last.
fn share(task: Task) -> usize {
    match task {
        Task::Copy => 1,
        Task::Sum => 4,
        Task::Brackets => 2,
    }
}

/// Examples to learn from, repeated until each task has its share.
#[must_use]
pub fn of_tasks(examples: &[Example]) -> Vec<Encoded> {
    let of_task = |task| examples.iter().filter(move |e| e.task == task).map(Encoded::new);
    let of_each = Task::ALL.map(|task| (task, of_task(task).collect::<Vec<_>>()));
    let largest = of_each.iter().map(|(_, examples)| examples.len()).max().unwrap_or(0);
    let repeated = |(task, examples): &(Task, Vec<Encoded>)| {
        examples.iter().cycle().take(share(*task) * largest).cloned().collect::<Vec<_>>()
    };
    of_each.iter().flat_map(repeated).collect()
}

/// Everything that decides the result, besides the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Sizes.
    pub config: Config,
    /// Steps in all; the rate of learning falls towards their end.
    pub steps: u64,
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a row.
    pub length: usize,
    /// Highest rate of learning.
    pub rate: f32,
    /// Seed of first parameters and batches.
    pub seed: u64,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        let config = Config::default();
        Self { config, steps: 4000, rows: 8, length: 64, rate: 7e-4, seed: 1 }
    }
}

impl Hyperparameters {
    /// Rate of learning at `step`: up in 100 steps, then half a cosine down to a twentieth.
    #[must_use]
    pub fn rate_at(&self, step: u64) -> f32 {
        let warm = ((step + 1) as f32 / 100.0).min(1.0);
        let progress = step as f32 / self.steps.max(1) as f32;
        let cosine = 0.5 * (1.0 + (std::f32::consts::PI * progress.min(1.0)).cos());
        self.rate * warm * (0.05 + 0.95 * cosine)
    }
}

/// A model under training.
pub struct Trainer {
    /// What was asked for.
    pub hyper: Hyperparameters,
    /// The model.
    pub model: Model,
    /// Moments and number of steps taken.
    pub optimizer: AdamW,
    examples: Vec<Encoded>,
}

/// Outcome of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Mean loss of the batch before the step.
    pub loss: f32,
    /// Share of exact answers in the batch before the step.
    pub exact_rate: f64,
}

impl Trainer {
    /// A training that has not begun, on [`of_tasks`] or [`Encoded::of_text`].
    ///
    /// # Errors
    /// [`Error::Model`] for sizes that do not fit, or no examples.
    pub fn new(hyper: Hyperparameters, examples: Vec<Encoded>) -> Result<Self, Error> {
        if examples.is_empty() || hyper.rows == 0 || hyper.length < SCORE_LENGTH {
            let reason =
                format!("training needs examples, rows and at least {SCORE_LENGTH} tokens");
            return Err(Error::Model(reason));
        }
        let model = Model::new(hyper.config, hyper.seed)?;
        let optimizer = AdamW::new(model.parameters());
        Ok(Self { hyper, model, optimizer, examples })
    }

    /// Whether all steps are done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.optimizer.step >= self.hyper.steps
    }

    /// One step.
    ///
    /// # Errors
    /// [`Error::Tensor`], or [`Error::Model`] if the loss is no number.
    pub fn step(&mut self) -> Result<StepReport, Error> {
        let (hyper, step) = (self.hyper, self.optimizer.step);
        let batch = Batch::random(&self.examples, hyper.rows, hyper.length, hyper.seed, step);
        let n_counted = batch.n_counted();
        let parts = batch.split(PARTS);
        let (first, others) = parts.split_first().expect("a batch has rows");
        let (mut sum, others) = std::thread::scope(|scope| {
            let model = &self.model;
            let start = |part| scope.spawn(move || Derivatives::of(model, part, n_counted));
            let others: Vec<_> = others.iter().map(start).collect();
            let first = Derivatives::of(&self.model, first, n_counted);
            let join = |handle: std::thread::ScopedJoinHandle<'_, _>| {
                handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            (first, others.into_iter().map(join).collect::<Vec<_>>())
        });
        if let Ok(sum) = &mut sum {
            for other in others {
                sum.add(&other?);
            }
        }
        let Derivatives { loss, score, grads } = sum?;
        if !loss.is_finite() {
            return Err(Error::Model(format!(
                "step {step}: the loss is {loss}; use a lower --rate"
            )));
        }
        self.optimizer.step(self.model.parameters(), &grads, hyper.rate_at(step))?;
        Ok(StepReport { loss, exact_rate: score.exact_rate() })
    }
}

/// What a part of a batch contributes.
struct Derivatives {
    loss: f32,
    score: Score,
    grads: Vec<Vec<f32>>,
}

impl Derivatives {
    fn of(model: &Model, part: &Batch, n_counted: usize) -> Result<Self, Error> {
        let (loss, logits) = model.loss(part, n_counted)?;
        let score = Score::of(part, &logits)?;
        let store = loss.backward()?;
        let grad = |p: &Parameter| match store.get(&p.var) {
            Some(grad) => grad.contiguous()?.flatten_all()?.to_vec1::<f32>(),
            None => Ok(vec![0.0; p.var.elem_count()]),
        };
        let grads = model.parameters().iter().map(grad).collect::<Result<_, _>>()?;
        Ok(Self { loss: loss.to_scalar()?, score, grads })
    }

    fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.score.add(&other.score);
        for (sum, other) in self.grads.iter_mut().flatten().zip(other.grads.iter().flatten()) {
            *sum += other;
        }
    }
}

/// Scores `examples` one by one, each at the start of a text, per task.
///
/// # Errors
/// [`Error::Tensor`].
pub fn score(model: &Model, examples: &[Example]) -> Result<Vec<(Task, Score)>, Error> {
    let mut scores = Vec::new();
    for task in Task::ALL {
        let of_task = examples.iter().filter(|e| e.task == task);
        let encoded: Vec<Encoded> = of_task.map(Encoded::new).collect();
        let mut total = Score::default();
        for some in encoded.chunks(SCORE_ROWS) {
            let batch = Batch::single(some, SCORE_LENGTH);
            total.add(&Score::of(&batch, &model.logits(&batch.tokens, SCORE_LENGTH)?)?);
        }
        scores.push((task, total));
    }
    Ok(scores)
}
