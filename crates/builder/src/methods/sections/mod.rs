//! Blocks of 8 inputs, one atom of every section per block: `sections`.

mod budget;
mod dictionaries;
mod divergence;
mod ffn_tuning;
mod moments;
mod sensitivity;
mod sequential;
mod states;
mod text;
mod tuning;

use std::collections::BTreeMap;
use std::sync::Arc;

use calibration::CalibratedInput;
use format::sections::MAX_SECTIONS;
use format::{CodecError, ExpertStack, Matrix, MatrixId, MatrixShape, Scheme};
use inspect::Settings;
use numerics::{Codec, EncodeContext, Shrink};
use program::table::bits_per_weight;
use sections::{ExpertsCodec, InputMetrics, Metric, MetricCache, SectionsCodec, SectionsParams};

pub use budget::{Budget, Sensitivity};
pub use ffn_tuning::FfnTuneStep;
pub use moments::Moments;
pub use sensitivity::SensitivityRun;
pub use sequential::{SequentialParams, Weighing, why_not_layers};
pub use states::path as states_path;
pub use tuning::TuneStep;

use crate::{
    Allocation, Encoded, Encoding, Error, Method, PlanItem, Sequence, SharedBudget, Stage, Survey,
    Tuning,
};
use dictionaries::SharedDictionaries;
use sequential::SequentialStep;

/// The flag that gives several matrices one dictionary.
const SHARE_DICT: &str = "--share-dict";
/// Its only value: the matrices that do.
pub const SHARED_BY: &str = "gate,up";

/// Sections with the same parameters for every tensor, except their number where a budget is shared out.
#[derive(Clone, Debug)]
pub struct SectionsMethod {
    params: SectionsParams,
    moments: Option<Moments>,
    budget: Option<(Budget, Sensitivity)>,
    /// Sections of each tensor, once the budget has been shared out.
    allocation: Allocation,
    steps: ModelSteps,
    /// Of the input of the last matrix.
    metrics: Arc<MetricCache>,
    dictionaries: Arc<SharedDictionaries>,
    /// Whether gate and up of a layer have one dictionary, as those of experts always have.
    shares_dictionary: bool,
}

/// What is done with the whole model besides coding tensor by tensor.
#[derive(Clone, Debug, Default)]
pub struct ModelSteps {
    /// How to recapture the activations; `None` to fit to the calibration as it is.
    pub sequential: Option<SequentialParams>,
    /// Tuning of the finished codes, FFN by FFN.
    pub tune_ffn: Option<FfnTuneStep>,
    /// Tuning of the finished codes, all together.
    pub tune: Option<TuneStep>,
}

/// The metric of one of many experts.
type MetricOf<'e> = Box<dyn Fn(usize) -> Result<Metric, CodecError> + 'e>;

impl SectionsMethod {
    /// The method with `params` for every tensor; `moments` if there is a calibration. A `budget` takes the
    /// place of the number of sections.
    #[must_use]
    pub fn new(
        params: SectionsParams,
        moments: Option<Moments>,
        budget: Option<(Budget, Sensitivity)>,
    ) -> Self {
        let (allocation, steps) = (Allocation::default(), ModelSteps::default());
        let (metrics, dictionaries) = (Arc::default(), Arc::default());
        let shares_dictionary = false;
        Self {
            params,
            moments,
            budget,
            allocation,
            steps,
            metrics,
            dictionaries,
            shares_dictionary,
        }
    }

    /// The same with `steps`, which need a calibration.
    #[must_use]
    pub fn with_steps(self, steps: ModelSteps) -> Self {
        Self { steps, ..self }
    }

    /// The same with one dictionary for gate and up of a layer, if `shares`.
    #[must_use]
    pub fn with_shared_dictionary(self, shares: bool) -> Self {
        Self { shares_dictionary: shares, ..self }
    }

    fn params_for(&self, tensor: MatrixId) -> SectionsParams {
        let allocated = self.allocation.0.get(&tensor).map(|s| *s as usize);
        let sections = allocated.unwrap_or(self.params.sections);
        SectionsParams { sections, ..self.params.clone() }
    }

    fn codec_for(&self, tensor: MatrixId) -> SectionsCodec {
        SectionsCodec::new(self.params_for(tensor))
    }

    /// `codec` for the inputs that `weights`, like those of the matrix, will see, and the shrinkage of their second moment.
    fn fitted(
        &self,
        codec: SectionsCodec,
        weights: (&[f32], MatrixShape),
        encoding: &Encoding<'_>,
        context: &EncodeContext<'_>,
    ) -> Result<(SectionsCodec, Option<f64>), CodecError> {
        let Some((moments, input)) = self.moments.zip(encoding.calibrated) else {
            return Ok((codec, None));
        };
        let mut metrics = self.input_metrics(moments, input, encoding);
        let (share, metric) =
            moments.metric(&mut metrics, &codec.params, input, weights, context)?;
        self.metrics.keep(metrics);
        Ok((codec.with_metric(metric), Some(share)))
    }

    /// The codec with the dictionary of all matrices that read what that of `encoding` reads, and the shrinkage of their
    /// second moment.
    fn with_common_dictionary(
        &self,
        encoding: &Encoding<'_>,
    ) -> Result<(SectionsCodec, Option<f64>), CodecError> {
        let Encoding { item, context, .. } = encoding;
        let codec = self.codec_for(item.tensor);
        self.dictionaries.codec(encoding, codec.params.sections, || {
            let (rows, shape) = dictionaries::rows(encoding)?;
            let context = EncodeContext { seed: item.input_seed, ..**context };
            let (codec, shrink) = self.fitted(codec, (&rows, shape), encoding, &context)?;
            let dictionary = codec.learn(&rows, shape, &context)?;
            Ok((codec.with_dictionary(Arc::new(dictionary)), shrink))
        })
    }

    /// Gives the metric of what each expert of `stack` sees itself; `None` where nothing is known but what all see together.
    fn of_experts<'e>(
        &self,
        encoding: &'e Encoding<'_>,
        stack: ExpertStack,
        shrink: Option<f64>,
    ) -> Option<MetricOf<'e>> {
        let damping = self.params.damping;
        let experts = encoding.importance.map_or(&[][..], |importance| &importance.experts);
        match (self.moments, encoding.calibrated, shrink) {
            (Some(moments), Some(input), Some(share)) if input.experts.n() == stack.n_experts => {
                Some(Box::new(move |expert| {
                    let moment = Arc::new(moments.of_expert(input, expert));
                    Metric::full(moment, share, damping, stack.each)
                }))
            }
            (_, None, _) if experts.len() == stack.n_experts => {
                Some(Box::new(move |expert| Metric::diagonal(&experts[expert].shaped, stack.each)))
            }
            _ => None,
        }
    }

    /// Metrics of `input`, with what is known from the matrix before if that reads it too.
    fn input_metrics(
        &self,
        moments: Moments,
        input: &CalibratedInput,
        encoding: &Encoding<'_>,
    ) -> InputMetrics {
        let is_shared = encoding.item.tensor.role.input().readers().count() > 1;
        let key = is_shared.then(|| moments.key(input));
        let moment = || moments.moment(input, encoding.context.mul_mat);
        self.metrics.take(key, self.params.damping, moment)
    }
}

impl Method for SectionsMethod {
    fn scheme(&self) -> &'static str {
        Scheme::Sections.as_str()
    }

    fn codec(&self, matrix: &Matrix) -> Box<dyn Codec> {
        let codec = self.codec_for(matrix.id);
        match matrix.n_experts {
            None => Box::new(codec),
            Some(n_experts) => {
                Box::new(ExpertsCodec::new(codec, ExpertStack { each: matrix.shape, n_experts }))
            }
        }
    }

    fn codes_experts(&self) -> bool {
        true
    }

    fn encode(&self, encoding: &Encoding<'_>) -> Result<Encoded, CodecError> {
        let Encoding { item, weights, context, .. } = encoding;
        let Some(n_experts) = item.matrix.n_experts else {
            let (codec, shrink) = if self.shares_dictionary && dictionaries::has_two(encoding) {
                self.with_common_dictionary(encoding)?
            } else {
                let codec = self.codec_for(item.tensor);
                self.fitted(codec, (weights, item.shape), encoding, context)?
            };
            return Ok(Encoded { sidecars: codec.encode(weights, item.shape, context)?, shrink });
        };
        let (codec, shrink) = self.with_common_dictionary(encoding)?;
        let stack = ExpertStack { each: item.matrix.shape, n_experts };
        let experts = ExpertsCodec::new(codec.clone(), stack);
        let sidecars = match self.of_experts(encoding, stack, shrink) {
            Some(metric) => experts.encode_by(weights, item.shape, context, |expert| {
                Ok(codec.clone().with_metric(Arc::new(metric(expert)?)))
            })?,
            None => experts.encode(weights, item.shape, context)?,
        };
        Ok(Encoded { sidecars, shrink })
    }

    fn smaller(&self, items: &[&PlanItem]) -> String {
        let source: u64 = items.iter().map(|i| i.source_bytes).sum();
        let n_weights: u64 = items.iter().map(|i| i.shape.n_weights() as u64).sum();
        let bytes = |sections: usize| {
            let params = SectionsParams { sections, ..self.params.clone() };
            let of = |i: &&PlanItem| format::n_bytes(&params.sidecars(i.shape).ok()?);
            items.iter().map(of).sum::<Option<usize>>()
        };
        let is_small = |s: &usize| bytes(*s).is_some_and(|n| (n as u64) < source);
        match (1..=MAX_SECTIONS).rev().find(is_small) {
            Some(s) if self.budget.is_none() => format!("use --S {s} or less"),
            Some(_) => {
                let bits = bits_per_weight(source, n_weights);
                format!("use --bpw below {bits:.2} or a larger --target-saving")
            }
            None => "leave them out by --targets or --layers, no --S is small enough".to_owned(),
        }
    }

    fn settings(&self, tensor: MatrixId, shape: MatrixShape) -> Settings {
        let sections = self.params_for(tensor).sections;
        let mut settings = Settings::from([("S".to_owned(), sections as u64)]);
        if self.params.outlier_share > 0.0 {
            settings.insert("exact".to_owned(), self.params.n_outliers(shape) as u64);
        }
        settings
    }

    fn arguments(&self) -> BTreeMap<String, String> {
        let params = &self.params;
        let mut arguments: BTreeMap<String, String> = [
            ("--scheme", self.scheme().to_owned()),
            ("--beam", params.beam.to_string()),
            ("--rounds", params.rounds.to_string()),
            ("--outliers", params.outlier_share.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let mut set = |name: &str, value| arguments.insert(name.to_owned(), value);
        if self.shares_dictionary {
            set(SHARE_DICT, SHARED_BY.to_owned());
        }
        match &self.budget {
            None => _ = set("--S", params.sections.to_string()),
            Some((budget, sensitivity)) => {
                let (flag, value) = budget.argument();
                set(flag, value.to_string());
                if let Some(sha256) = &sensitivity.sha256 {
                    set("--sensitivity", format!("sha256:{sha256}"));
                }
            }
        }
        if let Some(moments) = &self.moments {
            set("--sweeps", params.sweeps.to_string());
            set("--damping", params.damping.to_string());
            set("--shrink", moments.shrink.to_string());
            set("--max-h-dim", moments.max_dim.to_string());
        }
        if let Some(sequential) = &self.steps.sequential {
            set("--sequential", sequential.every.to_string());
            set("--token-weights", sequential.weights.to_string());
        }
        let steps = [
            self.steps.tune_ffn.map(|step| (ffn_tuning::FLAGS, step.params)),
            self.steps.tune.map(|step| (tuning::FLAGS, step.params)),
        ];
        for (flags, params) in steps.into_iter().flatten() {
            for (flag, value) in flags.into_iter().zip(tuning::values(params)) {
                set(flag, value);
            }
        }
        arguments
    }

    /// Running the model is candle's work, which goes by the cache. With a calibration that may follow at any time.
    fn machine(&self) -> Option<String> {
        self.moments.is_some().then(whole_model::machine)
    }

    fn later_stage(&self, flag: &str) -> Option<Stage> {
        match flag {
            flag if ffn_tuning::FLAGS.contains(&flag) => Some(Stage::FfnTuned),
            flag if tuning::FLAGS.contains(&flag) => Some(Stage::Tuned),
            _ => None,
        }
    }

    fn budget(&self) -> Option<Box<dyn SharedBudget + '_>> {
        let (budget, sensitivity) = self.budget.as_ref()?;
        Some(Box::new(Sharing { method: self, budget: *budget, sensitivity }))
    }

    fn sequence(&self) -> Option<Box<dyn Sequence + '_>> {
        let (params, moments) = self.steps.sequential.clone().zip(self.moments)?;
        Some(Box::new(SequentialStep {
            params,
            max_moment_dim: moments.max_dim,
            damping: self.params.damping,
            needs_text_only: self.budget.is_none(),
        }))
    }

    fn tunings(&self) -> Vec<Box<dyn Tuning + '_>> {
        let ffn = self.steps.tune_ffn.map(|step| Box::new(step) as Box<dyn Tuning>);
        let whole = self.steps.tune.map(|step| Box::new(step) as Box<dyn Tuning>);
        ffn.into_iter().chain(whole).collect()
    }
}

/// A method whose budget is to be shared out.
struct Sharing<'a> {
    method: &'a SectionsMethod,
    budget: Budget,
    sensitivity: &'a Sensitivity,
}

impl SharedBudget for Sharing<'_> {
    fn allocate(&self, survey: &Survey<'_>) -> Result<Allocation, Error> {
        let method = self.method;
        let metric = |encoding: &Encoding<'_>| -> Result<Option<Arc<Metric>>, CodecError> {
            let Some((moments, input)) = method.moments.zip(encoding.calibrated) else {
                return Ok(None);
            };
            let share = match moments.shrink {
                Shrink::Fixed(share) => share,
                Shrink::Auto => 0.0,
            };
            let mut metrics = method.input_metrics(moments, input, encoding);
            let metric = metrics.with_shrinkage(share, encoding.item.shape)?;
            method.metrics.keep(metrics);
            Ok(Some(metric))
        };
        self.budget.share_out(survey, &method.params, &metric, self.sensitivity)
    }

    fn with_allocation(&self, allocation: &Allocation) -> Box<dyn Method> {
        Box::new(SectionsMethod { allocation: allocation.clone(), ..self.method.clone() })
    }
}
