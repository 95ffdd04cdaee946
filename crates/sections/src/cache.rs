//! Metrics of an input, made once for all matrices that read it.

use std::sync::{Arc, Mutex, PoisonError};

use format::{CodecError, MatrixShape};
use numerics::Moment;

use crate::Metric;

/// Metrics of one input, one for every shrinkage of its second moment.
#[derive(Debug)]
pub struct InputMetrics {
    moment: Arc<Moment>,
    damping: f64,
    /// Whether what is made is kept.
    is_shared: bool,
    /// By shrinkage.
    made: Vec<(f64, Arc<Metric>)>,
}

impl InputMetrics {
    /// For inputs with second moment `moment`, factored with `damping`. What is made is kept if `is_shared`: if
    /// several matrices read the input.
    #[must_use]
    pub fn new(moment: Moment, damping: f64, is_shared: bool) -> Self {
        Self { moment: Arc::new(moment), damping, is_shared, made: Vec::new() }
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
        if self.is_shared {
            self.made.push((share, Arc::clone(&metric)));
        }
        Ok(metric)
    }
}

/// The metrics of the last input that several matrices read.
#[derive(Debug, Default)]
pub struct MetricCache(Mutex<Option<InputMetrics>>);

impl MetricCache {
    /// What is known of the input with second moment `moment`, as [`InputMetrics::new`]. What is known of another one
    /// is forgotten.
    #[must_use]
    pub fn take(&self, moment: Moment, damping: f64, is_shared: bool) -> InputMetrics {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match last {
            Some(last) if last.damping == damping && *last.moment == moment => last,
            _ => InputMetrics::new(moment, damping, is_shared),
        }
    }

    /// Keeps `metrics` for the next matrix, if they are shared.
    pub fn keep(&self, metrics: InputMetrics) {
        let kept = metrics.is_shared.then_some(metrics);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MatrixShape = MatrixShape { d_in: 2, d_out: 1 };

    #[test]
    fn one_input_is_factored_once_and_forgotten_for_the_next() {
        let moment = |v: f32| Moment::whole(&[2.0, v, v, 3.0], 2);
        let cache = MetricCache::default();
        let factored = |v, damping, is_shared| {
            let mut metrics = cache.take(moment(v), damping, is_shared);
            let metric = metrics.with_shrinkage(0.1, SHAPE).unwrap();
            cache.keep(metrics);
            metric
        };
        let first = factored(1.0, 0.01, true);
        assert!(Arc::ptr_eq(&first, &factored(1.0, 0.01, true)));
        assert!(!Arc::ptr_eq(&first, &factored(1.0, 0.02, true)));
        let other = factored(0.5, 0.01, false);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&other)), (1, 1));
    }
}
