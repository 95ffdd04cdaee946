//! Metrics of an input, made once for all matrices that read it.

use std::sync::{Arc, Mutex, PoisonError};

use format::{CodecError, MatrixShape};
use numerics::Moment;

use crate::Metric;

/// What tells an input from all others: the hash of what its second moment is made of.
pub type InputKey = [u8; 32];

/// Metrics of one input, one for every shrinkage of its second moment.
#[derive(Debug)]
pub struct InputMetrics {
    moment: Arc<Moment>,
    damping: f64,
    /// What is made is kept under this key; without one, it is not kept.
    key: Option<InputKey>,
    /// By shrinkage.
    made: Vec<(f64, Arc<Metric>)>,
}

impl InputMetrics {
    /// For inputs with second moment `moment`, factored with `damping`. What is made is kept where there is a `key`: if
    /// several matrices read the input.
    #[must_use]
    pub fn new(moment: Moment, damping: f64, key: Option<InputKey>) -> Self {
        Self { moment: Arc::new(moment), damping, key, made: Vec::new() }
    }

    /// The metric with the shrinkage `share`, for matrices of `shape`.
    ///
    /// # Errors
    /// As [`Metric::full`].
    pub fn with_shrinkage(
        &mut self,
        share: f64,
        shape: MatrixShape,
    ) -> Result<Arc<Metric>, CodecError> {
        if let Some((_, metric)) = self.made.iter().find(|(made, _)| *made == share) {
            return Ok(Arc::clone(metric));
        }
        let moment = Arc::clone(&self.moment);
        let metric = Arc::new(Metric::full(moment, share, self.damping, shape)?);
        if self.key.is_some() {
            self.made.push((share, Arc::clone(&metric)));
        }
        Ok(metric)
    }
}

/// The metrics of the last input that several matrices read.
#[derive(Debug, Default)]
pub struct MetricCache(Mutex<Option<InputMetrics>>);

impl MetricCache {
    /// What is known of the input called `key`, as [`InputMetrics::new`]. What is known of another one is forgotten;
    /// only then `moment` makes the second moment of this one, so that no two are in memory.
    #[must_use]
    pub fn take(
        &self,
        key: Option<InputKey>,
        damping: f64,
        moment: impl FnOnce() -> Moment,
    ) -> InputMetrics {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let known = last.filter(|last| last.damping == damping && last.key == key);
        known.unwrap_or_else(|| InputMetrics::new(moment(), damping, key))
    }

    /// Keeps `metrics` for the next matrix, if they are shared.
    pub fn keep(&self, metrics: InputMetrics) {
        let kept = metrics.key.is_some().then_some(metrics);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SHAPE: MatrixShape = MatrixShape { d_in: 2, d_out: 1 };

    #[test]
    fn one_input_is_factored_once_and_forgotten_for_the_next() {
        let n_moments = Cell::new(0);
        let cache = MetricCache::default();
        let factored = |v: f32, damping, key: Option<u8>| {
            let moment = || {
                n_moments.set(n_moments.get() + 1);
                Moment::whole(&[2.0, v, v, 3.0], 2)
            };
            let mut metrics = cache.take(key.map(|key| [key; 32]), damping, moment);
            let metric = metrics.with_shrinkage(0.1, SHAPE).unwrap();
            cache.keep(metrics);
            metric
        };
        let first = factored(1.0, 0.01, Some(1));
        assert!(Arc::ptr_eq(&first, &factored(1.0, 0.01, Some(1))));
        assert_eq!(n_moments.get(), 1, "the second reader needs none");
        assert!(!Arc::ptr_eq(&first, &factored(1.0, 0.02, Some(1))));
        assert!(!Arc::ptr_eq(&first, &factored(1.0, 0.01, Some(2))));
        let other = factored(0.5, 0.01, None);
        assert!(!Arc::ptr_eq(&other, &factored(0.5, 0.01, None)), "not kept");
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&other)), (1, 1));
    }
}
