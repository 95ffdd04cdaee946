//! The scheme `sections` as the builder sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use builder::{
    Allocation, Encoded, Encoding, Error, Interrupt, Method, PlanItem, Recapture, Reporter,
    Settings, Source, Survey, Tunable, Tuned, bits_per_weight,
};
use calibration::{CalibratedInput, Calibration, Fitted};
use codec::{Codec, EncodeContext, MatMul};
use format::sections::MAX_SECTIONS;
use format::{CodecError, MatrixId, MatrixShape, Scheme, Sidecar, SidecarSpec};
use ggml::gguf::Value;
use statecells::sections::{
    HeldOut, Moment, Probe, SectionsCodec, SectionsParams, Shrink, choose_shrink,
};

use ::tuning::TuneParams;

use crate::budget::{Budget, Sensitivity};
use crate::tuning::{self, Sequential, SequentialParams};

/// Sections with the same parameters for every tensor, except their number where a budget is shared out.
#[derive(Clone, Debug)]
pub struct SectionsMethod {
    params: SectionsParams,
    moments: Option<Moments>,
    budget: Option<(Budget, Sensitivity)>,
    /// Sections of each tensor, once the budget has been shared out.
    allocation: Allocation,
    steps: ModelSteps,
}

/// What is done with the whole model besides coding tensor by tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelSteps {
    /// How to recapture the activations; `None` to fit to the calibration as it is.
    pub sequential: Option<SequentialParams>,
    /// Tuning of the finished codes.
    pub tune: Option<TuneParams>,
    /// Orders the text that is tuned on.
    pub seed: u64,
}

/// What decides about tuning, which comes after everything else.
const TUNE_FLAGS: [&str; 3] = ["--tune", "--tune-contexts", "--tune-rate"];

/// Inputs of a span where the whole second moment would be too large: 4096^2 entries are 64 MB.
const SPAN: usize = 4096;

/// How the second moments of a calibration are used.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Their shrinkage.
    pub shrink: Shrink,
    /// Inputs up to this length get a whole one, longer ones one in spans.
    pub max_dim: usize,
}

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
        Self { params, moments, budget, allocation, steps }
    }

    /// The same with `steps`, which need a calibration.
    #[must_use]
    pub fn with_steps(self, steps: ModelSteps) -> Self {
        Self { steps, ..self }
    }

    fn params_for(&self, tensor: MatrixId) -> SectionsParams {
        let allocated = self.allocation.0.get(&tensor).map(|s| *s as usize);
        let sections = allocated.unwrap_or(self.params.sections);
        SectionsParams { sections, ..self.params.clone() }
    }

    fn codec_for(&self, tensor: MatrixId) -> SectionsCodec {
        SectionsCodec::new(self.params_for(tensor))
    }
}

impl Moments {
    /// E[x x^T] of `input`: whole up to the longest input that is, in spans beyond.
    pub fn moment(self, input: &CalibratedInput, mul_mat: &dyn MatMul) -> Moment {
        let d = input.d();
        let width = if d > self.max_dim { SPAN.min(self.max_dim) } else { d };
        match &input.fitted {
            Fitted::Moment(known) if width == d => Moment::whole(known.mean(), d),
            Fitted::Moment(known) => {
                let known = known.mean();
                Moment::in_spans(d, width, |span| {
                    span.clone().flat_map(|i| &known[i * d..][span.clone()]).copied().collect()
                })
            }
            Fitted::Samples(samples) => {
                let columns = samples.columns();
                Moment::in_spans(d, width, |span| columns.moment(span.clone(), span, mul_mat))
            }
        }
    }

    /// The shrinkage for `moment` and `codec`.
    fn shrinkage(
        self,
        moment: &Moment,
        codec: &SectionsCodec,
        input: &CalibratedInput,
        encoding: &Encoding<'_>,
    ) -> Result<f64, CodecError> {
        let share = match self.shrink {
            Shrink::Fixed(share) => return Ok(share),
            Shrink::Auto => {
                let Encoding { item, weights, context, .. } = encoding;
                let probe = Probe::new(&codec.params, weights, item.shape, context)?;
                match input.holdout_moment() {
                    Some(h) => choose_shrink(&probe, moment, HeldOut::Moment(&h), context)?,
                    None => {
                        let inputs = input.holdout_samples();
                        choose_shrink(&probe, moment, HeldOut::Inputs(&inputs), context)?
                    }
                }
            }
        };
        Ok(share)
    }
}

impl Method for SectionsMethod {
    fn scheme(&self) -> &'static str {
        Scheme::Sections.as_str()
    }

    fn codec(&self, tensor: MatrixId) -> Box<dyn Codec> {
        Box::new(self.codec_for(tensor))
    }

    fn has_budget(&self) -> bool {
        self.budget.is_some()
    }

    fn allocate(&self, survey: &Survey<'_>) -> Result<Allocation, Error> {
        let (budget, sensitivity) = self.budget.as_ref().expect("only asked with a budget");
        budget.share_out(survey, &self.params, self.moments, sensitivity)
    }

    fn with_allocation(&self, allocation: &Allocation) -> Box<dyn Method> {
        Box::new(Self { allocation: allocation.clone(), ..self.clone() })
    }

    fn encode(&self, encoding: &Encoding<'_>) -> Result<Encoded, CodecError> {
        let Encoding { item, weights, calibrated, context } = encoding;
        let codec = self.codec_for(item.tensor);
        let Some((moments, input)) = self.moments.zip(*calibrated) else {
            let sidecars = codec.encode(weights, item.shape, context)?;
            return Ok(Encoded { sidecars, shrink: None });
        };
        let moment = moments.moment(input, context.mul_mat);
        let share = moments.shrinkage(&moment, &codec, input, encoding)?;
        let codec = codec.with_second_moment(Arc::new(moment.shrunk(share)));
        drop(moment);
        let sidecars = codec.encode(weights, item.shape, context)?;
        Ok(Encoded { sidecars, shrink: Some(share) })
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
            set("--damping", params.damping.to_string());
            set("--shrink", moments.shrink.to_string());
            set("--max-h-dim", moments.max_dim.to_string());
        }
        if let Some(sequential) = &self.steps.sequential {
            set("--sequential", sequential.every.to_string());
            set("--token-weights", sequential.weights.to_string());
        }
        if let Some(tune) = &self.steps.tune {
            let values = [tune.steps.to_string(), tune.contexts.to_string(), tune.rate.to_string()];
            TUNE_FLAGS.into_iter().zip(values).for_each(|(flag, value)| _ = set(flag, value));
        }
        arguments
    }

    /// Never called: no file of other parameters grows into one of these.
    fn complete(
        &self,
        _tensor: MatrixId,
        _weights: &[f32],
        _shape: MatrixShape,
        _sidecars: Vec<Sidecar>,
        _context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let reason = "a file of another scheme cannot grow into sections".to_owned();
        Err(CodecError::Sidecar { suffix: "codes", reason })
    }

    fn check(
        &self,
        source: &Source,
        calibration: Option<&Calibration>,
        tensors: &[MatrixId],
    ) -> Result<(), Error> {
        match calibration {
            Some(calibration) => tuning::check(&self.steps, (source, calibration), tensors),
            None => Ok(()),
        }
    }

    /// Running the model is candle's work, which goes by the cache. With a calibration that may follow at any time.
    fn machine(&self) -> Option<String> {
        self.moments.is_some().then(::tuning::machine)
    }

    fn is_later_step(&self, flag: &str) -> bool {
        TUNE_FLAGS.contains(&flag)
    }

    fn depends_on_earlier(&self) -> bool {
        self.steps.sequential.is_some()
    }

    fn needs_text_only(&self) -> bool {
        self.steps.sequential.is_some() && self.budget.is_none()
    }

    fn recapture<'a>(
        &'a self,
        source: &'a Source,
        calibration: &'a Calibration,
        watch: (&'a Reporter, &'a Interrupt),
    ) -> Result<Option<Box<dyn Recapture + 'a>>, Error> {
        let (Some(params), Some(moments)) = (self.steps.sequential, self.moments) else {
            return Ok(None);
        };
        Ok(Some(Box::new(Sequential::new(
            params,
            (source, calibration),
            (moments.max_dim, self.params.damping),
            watch,
        )?)))
    }

    fn tunes(&self) -> bool {
        self.steps.tune.is_some()
    }

    fn tune(
        &self,
        source: &Source,
        calibration: &Calibration,
        tensors: BTreeMap<MatrixId, Tunable>,
        watch: (&Reporter, &Interrupt),
    ) -> Result<Tuned, Error> {
        let params = self.steps.tune.expect("only asked if it tunes");
        tuning::tune(params, self.steps.seed, (source, calibration), tensors, watch)
    }

    fn earlier_sidecars(&self, _item: &PlanItem, _recorded: &str) -> Option<Vec<SidecarSpec>> {
        None
    }

    fn metadata(&self, _coded: &[&PlanItem]) -> Vec<(String, Value)> {
        Vec::new()
    }
}
