//! Reading calibration files, which may be damaged or hostile.

use std::path::Path;

use format::{InputId, Width};
use ggml::Type;
use ggml::gguf::{Array, GgufError, GgufFile, TensorInfo, Value};
use half::f16;

use crate::format::{
    EXPERT_MOMENTS, EXPERT_SQUARES, EXPERT_TOKENS, HOLDOUT, HOLDOUT_MOMENT, HOLDOUT_SCALE, MOMENT,
    SAMPLE_SCALE, SAMPLES,
};
use crate::input::Fitted;
use crate::{
    CalibratedInput, CalibrationError, Experts, ModelId, PassageKind, Provenance, Samples,
    SecondMoment, SquareSums, TextId, TextSketch, keys,
};

/// A calibration file. Data are read and checked input by input.
#[derive(Debug)]
pub struct Calibration {
    file: GgufFile,
    provenance: Provenance,
}

impl Calibration {
    /// Opens `path` and reads where it comes from.
    ///
    /// # Errors
    /// [`CalibrationError::Gguf`] or [`CalibrationError::Malformed`].
    pub fn open(path: &Path) -> Result<Self, CalibrationError> {
        let malformed = |reason| CalibrationError::Malformed { path: path.to_owned(), reason };
        let file = GgufFile::open_whole(path).map_err(|error| match error {
            GgufError::Foreign { what, .. } => malformed(what),
            other => other.into(),
        })?;
        check_kind(&file).map_err(malformed)?;
        let provenance = read_provenance(&file).map_err(malformed)?;
        Ok(Self { file, provenance })
    }

    /// The path it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Where it comes from.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Checks that it was made for `model`.
    ///
    /// # Errors
    /// [`CalibrationError::OtherModel`] with the first property that differs.
    pub fn check_model(&self, model: &ModelId) -> Result<(), CalibrationError> {
        let own = &self.provenance.model;
        let short = |hash: &str| hash.chars().take(12).collect::<String>() + "...";
        let properties = [
            ("architecture", own.architecture.clone(), model.architecture.clone()),
            ("layers:", own.n_layer.to_string(), model.n_layer.to_string()),
            ("n_embd", own.n_embd.to_string(), model.n_embd.to_string()),
            ("n_ff", own.n_ff.to_string(), model.n_ff.to_string()),
        ];
        let differs = properties.into_iter().find(|(_, recorded, given)| recorded != given);
        let hash = || {
            let shown = ("SHA-256", short(&own.sha256), short(&model.sha256));
            (own.sha256 != model.sha256).then_some(shown)
        };
        match differs.or_else(hash) {
            None => Ok(()),
            Some((what, recorded, given)) => {
                let path = self.path().to_owned();
                Err(CalibrationError::OtherModel { path, what, recorded, given })
            }
        }
    }

    /// Whether the file holds activations, not only the text.
    #[must_use]
    pub fn has_inputs(&self) -> bool {
        !self.file.tensors().is_empty()
    }

    /// Whether the file covers `input`.
    #[must_use]
    pub fn covers(&self, input: InputId) -> bool {
        self.file.tensor(&name(input, HOLDOUT)).is_some()
    }

    /// Whether the file tells what each expert has seen of `input`.
    #[must_use]
    pub fn covers_experts(&self, input: InputId) -> bool {
        self.file.tensor(&name(input, EXPERT_TOKENS)).is_some()
    }

    /// Checks that the file covers `input`.
    ///
    /// # Errors
    /// [`CalibrationError::TokensOnly`] or [`CalibrationError::NoInput`].
    pub fn check_covers(&self, input: InputId) -> Result<(), CalibrationError> {
        let path = || self.path().to_owned();
        match (self.covers(input), self.has_inputs()) {
            (true, _) => Ok(()),
            (false, true) => Err(CalibrationError::NoInput { path: path(), input }),
            (false, false) => Err(CalibrationError::TokensOnly { path: path() }),
        }
    }

    /// What is known about `input`.
    ///
    /// # Errors
    /// As [`Self::check_covers`], or [`CalibrationError::Malformed`] if what it holds cannot be true.
    pub fn input(&self, input: InputId) -> Result<CalibratedInput, CalibrationError> {
        self.check_covers(input)?;
        self.read_input(input)
            .map_err(|reason| CalibrationError::Malformed { path: self.path().to_owned(), reason })
    }

    fn read_input(&self, input: InputId) -> Result<CalibratedInput, String> {
        let holdout = self.samples(input, HOLDOUT, HOLDOUT_SCALE)?.ok_or("no hold-out")?;
        let d = holdout.d();
        let (model, width) = (&self.provenance.model, input.role.width());
        let expected = width.pick(model.n_embd as usize, model.n_ff as usize);
        // Layers may have FFNs of different widths, the widest of which is recorded.
        if d > expected || width == Width::Embedding && d != expected {
            return Err(format!("{input}: inputs of {d} values do not fit the model's {expected}"));
        }
        let fitted = match self.moment(input, MOMENT, d, self.provenance.n_fitted)? {
            Some(moment) => Fitted::Moment(moment),
            None => Fitted::Samples(self.fitted_samples(input, d)?),
        };
        let holdout_moment = self.moment(input, HOLDOUT_MOMENT, d, self.provenance.n_held_out)?;
        let experts = self.experts(input, d)?;
        Ok(CalibratedInput { fitted, holdout_moment, holdout, experts })
    }

    fn fitted_samples(&self, input: InputId, d: usize) -> Result<Samples, String> {
        let samples = self.samples(input, SAMPLES, SAMPLE_SCALE)?;
        let samples = samples.ok_or_else(|| format!("{input}: neither h nor samples"))?;
        if samples.d() != d {
            return Err(format!("{input}: samples and hold-out have different lengths"));
        }
        Ok(samples)
    }

    /// The moment called `suffix`, if there is one.
    fn moment(
        &self,
        input: InputId,
        suffix: &str,
        d: usize,
        n_tokens: u64,
    ) -> Result<Option<SecondMoment>, String> {
        let Some(tensor) = self.file.tensor(&name(input, suffix)) else { return Ok(None) };
        let wrong = |what: &str| format!("tensor '{}': {what}", tensor.name());
        let shape_error = || wrong(&format!("is not the F32 triangle of {d} inputs"));
        // Before anything is read, so that no more is allocated than the file holds.
        if tensor.dims().len() != 1 || crate::moment::packed_len(d) != Some(tensor.dims()[0]) {
            return Err(shape_error());
        }
        let packed = self.f32(tensor)?;
        let moment = SecondMoment::from_packed(d, n_tokens, packed).ok_or_else(shape_error)?;
        moment.check().map_err(|reason| wrong(&reason))?;
        Ok(Some(moment))
    }

    /// What is kept of single experts.
    fn experts(&self, input: InputId, d: usize) -> Result<Experts, String> {
        let tensor = |suffix| self.file.tensor(&name(input, suffix));
        let (is_whole, kept, len) = match (tensor(EXPERT_MOMENTS), tensor(EXPERT_SQUARES)) {
            (Some(moments), _) => (true, moments, crate::moment::packed_len(d)),
            (None, Some(squares)) => (false, squares, Some(d)),
            (None, None) => return Ok(Experts::Unknown),
        };
        let wrong = |what: &str| format!("tensor '{}': {what}", kept.name());
        let len = len.filter(|len| kept.dims().first() == Some(len));
        let what = if is_whole { "the F32 triangles" } else { "the sums of squares" };
        let len = len.ok_or_else(|| wrong(&format!("is not {what} of {d} inputs")))?;
        let n_experts = kept.n_elements() / len;
        let tokens = tensor(EXPERT_TOKENS).filter(|t| t.dims() == [n_experts]);
        let tokens = self.f32(tokens.ok_or_else(|| wrong("has no fitting numbers of tokens"))?)?;
        let is_count = |n: &f32| *n >= 0.0 && n.fract() == 0.0 && *n < 1e15;
        if !tokens.iter().all(is_count) {
            return Err(wrong("a number of tokens is none"));
        }
        let values = self.f32(kept)?;
        let each = tokens.iter().map(|n| *n as u64).zip(values.chunks_exact(len));
        if !is_whole {
            let squares = |(n, sums): (u64, &[f32])| SquareSums::from_sums(sums.to_vec(), n);
            let all = each.map(squares).collect::<Option<_>>();
            return all.map(Experts::Squares).ok_or_else(|| wrong("a sum is none of squares"));
        }
        let moment = |(n, packed): (u64, &[f32])| {
            SecondMoment::from_packed(d, n, packed.to_vec())
                .ok_or_else(|| wrong("has another size"))
        };
        let all = Experts::Moments(each.map(moment).collect::<Result<_, _>>()?);
        all.check().map_err(|reason| wrong(&reason))?;
        Ok(all)
    }

    /// The samples called `suffix`, if there are any.
    fn samples(
        &self,
        input: InputId,
        suffix: &str,
        scale_suffix: &str,
    ) -> Result<Option<Samples>, String> {
        let Some(tensor) = self.file.tensor(&name(input, suffix)) else { return Ok(None) };
        let wrong = |what: &str| format!("tensor '{}': {what}", tensor.name());
        let shape = tensor.matrix_shape().filter(|s| s.d_in > 0 && s.d_out > 0);
        let shape = shape.filter(|_| tensor.ty() == Type::F16);
        let shape = shape.ok_or_else(|| wrong("is not F16 [d, n]"))?;
        let scale_name = name(input, scale_suffix);
        let scales = self.file.tensor(&scale_name).filter(|s| s.dims() == [shape.d_out]);
        let scales = scales.ok_or_else(|| wrong("has no fitting scales"))?;
        let bytes = self.file.data(tensor).chunks_exact(2);
        let values = bytes.map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        let samples = Samples::from_stored(shape.d_in, values, self.f32(scales)?);
        samples.map(Some).map_err(wrong)
    }

    fn f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>, String> {
        if tensor.ty() != Type::F32 {
            return Err(format!("tensor '{}' is {}, not F32", tensor.name(), tensor.ty()));
        }
        self.file.to_f32(tensor).map_err(|e| e.to_string())
    }
}

fn name(input: InputId, suffix: &str) -> String {
    format!("{}.{suffix}", input.stem())
}

fn check_kind(file: &GgufFile) -> Result<(), String> {
    let kind = file.string(keys::TYPE).ok().flatten();
    if kind.as_deref() != Some(keys::TYPE_VALUE) {
        return Err("is no calibration file".to_owned());
    }
    match file.u32(keys::VERSION).ok().flatten() {
        Some(keys::FORMAT_VERSION) => Ok(()),
        Some(version) => Err(format!(
            "has format version {version}, this program reads {}",
            keys::FORMAT_VERSION
        )),
        None => Err(missing(keys::VERSION)),
    }
}

fn missing(key: &str) -> String {
    format!("metadata key '{key}' is missing or of another type")
}

fn read_provenance(file: &GgufFile) -> Result<Provenance, String> {
    let string = |key: &str| file.string(key).ok().flatten().ok_or_else(|| missing(key));
    let u32 = |key: &str| file.u32(key).ok().flatten().ok_or_else(|| missing(key));
    let u64 = |key: &str| file.value(key).and_then(|v| v.as_u64()).ok_or_else(|| missing(key));
    let strings = |key: &str| match file.value(key) {
        Some(Value::Array(Array::String(list))) => Ok(list),
        _ => Err(missing(key)),
    };
    let hashes = match file.value(keys::SHINGLE_HASHES) {
        Some(Value::Array(Array::U64(hashes))) => TextSketch::from_hashes(hashes),
        _ => None,
    };
    let tokens = match file.value(keys::TOKENS) {
        None => Vec::new(),
        Some(Value::Array(Array::I32(tokens))) => tokens,
        Some(_) => return Err(missing(keys::TOKENS)),
    };
    let (names, sums) = (strings(keys::TEXT_NAMES)?, strings(keys::TEXT_SHA256)?);
    if names.len() != sums.len() || u32(keys::SHINGLE_TOKENS)? as usize != crate::SHINGLE_TOKENS {
        return Err("the record of the text does not fit".to_owned());
    }
    let texts = names.into_iter().zip(sums).map(|(name, sha256)| TextId { name, sha256 });
    let provenance = Provenance {
        model: ModelId {
            sha256: string(keys::MODEL_SHA256)?,
            architecture: string(keys::MODEL_ARCHITECTURE)?,
            n_layer: u32(keys::MODEL_N_LAYER)?,
            n_embd: u32(keys::MODEL_N_EMBD)?,
            n_ff: u32(keys::MODEL_N_FF)?,
        },
        texts: texts.collect(),
        sketch: hashes.ok_or_else(|| missing(keys::SHINGLE_HASHES))?,
        n_fitted: u64(keys::N_FITTED)?,
        n_held_out: u64(keys::N_HELD_OUT)?,
        n_ctx: u32(keys::N_CTX)?,
        tokens,
        seed: u64(keys::SEED)?,
        tool: string(keys::TOOL)?,
        llama_cpp: string(keys::LLAMA_CPP)?,
    };
    if provenance.n_fitted == 0 || provenance.n_held_out == 0 {
        return Err("it was made from no tokens".to_owned());
    }
    check_tokens(&provenance)?;
    Ok(provenance)
}

/// The contexts, if the file holds them, must be the ones that were counted.
fn check_tokens(provenance: &Provenance) -> Result<(), String> {
    let count = |kind| provenance.contexts(kind).map(|c| c.len() as u64).sum::<u64>();
    let counted = (count(PassageKind::Fitted), count(PassageKind::HeldOut));
    let fits = counted == (provenance.n_fitted, provenance.n_held_out)
        && provenance.tokens.len() as u64 == counted.0 + counted.1
        && provenance.tokens.iter().all(|t| *t >= 0);
    match fits || provenance.tokens.is_empty() {
        true => Ok(()),
        false => Err(format!("metadata key '{}' does not fit the others", keys::TOKENS)),
    }
}
