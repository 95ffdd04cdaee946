//! Writing calibration files: names, types and order of their tensors.

use std::collections::BTreeMap;
use std::io::{self, Write};

use format::InputId;
use ggml::Type;
use ggml::gguf::GgufWriter;

use crate::input::Fitted;
use crate::{
    CalibratedInput, CalibrationError, Experts, Provenance, Samples, SecondMoment, SquareSums,
};
use crate::{keys, moment};

/// Largest input whose second moment is kept unless asked otherwise: 134 MB in the file.
pub const DEFAULT_MAX_MOMENT_DIM: usize = 8192;

/// Memory for the second moments of single experts unless asked otherwise, all together.
pub const DEFAULT_MAX_EXPERT_MIB: usize = 2048;

/// F32 [d * (d + 1) / 2]: sum of x x^T over the fitted tokens, lower triangle.
pub(crate) const MOMENT: &str = "h";
/// F16 [d, n]: fitted inputs, divided by their scale.
pub(crate) const SAMPLES: &str = "samples";
/// F32 `[n]`.
pub(crate) const SAMPLE_SCALE: &str = "sample_scale";
/// F32 [d * (d + 1) / 2]: sum over the held-out tokens.
pub(crate) const HOLDOUT_MOMENT: &str = "holdout_h";
/// F32 [d * (d + 1) / 2, n_experts]: the sum over the fitted tokens that each expert has seen.
pub(crate) const EXPERT_MOMENTS: &str = "expert_h";
/// F32 [d, n_experts]: the sums of their squares alone.
pub(crate) const EXPERT_SQUARES: &str = "expert_squares";
/// F32 `[n_experts]`: how many those are.
pub(crate) const EXPERT_TOKENS: &str = "expert_tokens";
/// F16 [d, n]: held-out inputs, divided by their scale.
pub(crate) const HOLDOUT: &str = "holdout";
/// F32 `[n]`.
pub(crate) const HOLDOUT_SCALE: &str = "holdout_scale";

/// Data of one tensor of the file.
enum Data<'a> {
    F32(&'a [f32]),
    F16(&'a Samples),
    Moments(&'a [SecondMoment]),
    Squares(&'a [SquareSums]),
    Tokens(&'a Experts),
}

struct Tensor<'a> {
    name: String,
    dims: Vec<usize>,
    data: Data<'a>,
}

impl Data<'_> {
    fn ty(&self) -> Type {
        match self {
            Self::F32(_) | Self::Moments(_) | Self::Squares(_) | Self::Tokens(_) => Type::F32,
            Self::F16(_) => Type::F16,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        /// Values converted at a time.
        const CHUNK: usize = 1 << 16;
        match self {
            Self::F32(values) => values.chunks(CHUNK).try_for_each(|part| {
                out.write_all(&part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
            }),
            Self::Moments(moments) => {
                moments.iter().try_for_each(|moment| Data::F32(moment.packed()).write(out))
            }
            Self::Squares(all) => {
                all.iter().try_for_each(|squares| Data::F32(squares.sums()).write(out))
            }
            Self::Tokens(experts) => {
                let tokens: Vec<f32> = experts.n_tokens().iter().map(|n| *n as f32).collect();
                Data::F32(&tokens).write(out)
            }
            Self::F16(samples) => samples.stored().chunks(CHUNK).try_for_each(|part| {
                out.write_all(&part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
            }),
        }
    }
}

/// Writes a calibration file to `out`, without syncing it. The same values give the same bytes.
///
/// # Errors
/// [`CalibrationError::Values`] for sums that are not finite or samples that are missing;
/// [`CalibrationError::Write`].
pub fn write(
    out: impl Write,
    provenance: &Provenance,
    inputs: &BTreeMap<InputId, CalibratedInput>,
) -> Result<(), CalibrationError> {
    let mut writer = GgufWriter::new();
    add_metadata(&mut writer, provenance)?;
    let mut tensors = Vec::new();
    for (input, data) in inputs {
        check(data).map_err(|reason| CalibrationError::Values { input: input.stem(), reason })?;
        add_tensors(*input, data, &mut tensors);
    }
    for tensor in &tensors {
        writer.add_tensor(&tensor.name, tensor.data.ty(), &tensor.dims)?;
    }
    Ok(writer.write(out, |index, out| tensors[index].data.write(out))?)
}

fn check(data: &CalibratedInput) -> Result<(), String> {
    let n_fitted = match &data.fitted {
        Fitted::Moment(moment) => moment.check().map(|()| moment.n_tokens())?,
        Fitted::Samples(samples) => samples.len() as u64,
    };
    data.holdout_moment.as_ref().map_or(Ok(()), SecondMoment::check)?;
    data.experts.check()?;
    if n_fitted == 0 || data.holdout.is_empty() {
        return Err("there are no tokens to fit to or none held out".to_owned());
    }
    Ok(())
}

fn add_tensors<'a>(input: InputId, data: &'a CalibratedInput, tensors: &mut Vec<Tensor<'a>>) {
    let stem = input.stem();
    let mut add = |suffix: &str, dims: Vec<usize>, data| {
        tensors.push(Tensor { name: format!("{stem}.{suffix}"), dims, data });
    };
    let mut moment = |suffix, moment: &'a SecondMoment| {
        add(suffix, vec![moment.packed().len()], Data::F32(moment.packed()));
    };
    match &data.fitted {
        Fitted::Moment(h) => moment(MOMENT, h),
        Fitted::Samples(_) => {}
    }
    if let Some(h) = &data.holdout_moment {
        moment(HOLDOUT_MOMENT, h);
    }
    let n = data.experts.n();
    match &data.experts {
        Experts::Unknown => {}
        Experts::Moments(all) => {
            let len = all.first().map_or(0, |moment| moment.packed().len());
            add(EXPERT_MOMENTS, vec![len, n], Data::Moments(all));
        }
        Experts::Squares(all) => add(EXPERT_SQUARES, vec![data.d(), n], Data::Squares(all)),
    }
    if n > 0 {
        add(EXPERT_TOKENS, vec![n], Data::Tokens(&data.experts));
    }
    let mut samples = |suffix, scale_suffix, samples: &'a Samples| {
        add(suffix, vec![samples.d(), samples.len()], Data::F16(samples));
        add(scale_suffix, vec![samples.len()], Data::F32(samples.scales()));
    };
    if let Fitted::Samples(x) = &data.fitted {
        samples(SAMPLES, SAMPLE_SCALE, x);
    }
    samples(HOLDOUT, HOLDOUT_SCALE, &data.holdout);
}

fn add_metadata(writer: &mut GgufWriter, provenance: &Provenance) -> Result<(), CalibrationError> {
    let model = &provenance.model;
    let texts = |part: fn(&crate::TextId) -> &String| -> Vec<String> {
        provenance.texts.iter().map(|t| part(t).clone()).collect()
    };
    writer.set(keys::TYPE, keys::TYPE_VALUE)?;
    writer.set(keys::VERSION, keys::FORMAT_VERSION)?;
    writer.set(keys::MODEL_SHA256, &*model.sha256)?;
    writer.set(keys::MODEL_ARCHITECTURE, &*model.architecture)?;
    writer.set(keys::MODEL_N_LAYER, model.n_layer)?;
    writer.set(keys::MODEL_N_EMBD, model.n_embd)?;
    writer.set(keys::MODEL_N_FF, model.n_ff)?;
    writer.set(keys::TEXT_NAMES, texts(|t| &t.name))?;
    writer.set(keys::TEXT_SHA256, texts(|t| &t.sha256))?;
    writer.set(keys::N_FITTED, provenance.n_fitted)?;
    writer.set(keys::N_HELD_OUT, provenance.n_held_out)?;
    writer.set(keys::N_CTX, provenance.n_ctx)?;
    if !provenance.tokens.is_empty() {
        writer.set(keys::TOKENS, provenance.tokens.clone())?;
    }
    writer.set(keys::SEED, provenance.seed)?;
    writer.set(keys::TOOL, &*provenance.tool)?;
    writer.set(keys::LLAMA_CPP, &*provenance.llama_cpp)?;
    writer.set(keys::SHINGLE_TOKENS, crate::SHINGLE_TOKENS as u32)?;
    writer.set(keys::SHINGLE_HASHES, provenance.sketch.hashes().to_vec())?;
    Ok(())
}

/// Bytes that the tensors of one input of `d` values will take, about: its second moments if `d` is at
/// most `max_moment_dim`, else `n_samples` samples, and `n_holdout` held-out samples.
#[must_use]
pub fn planned_bytes(d: usize, max_moment_dim: usize, n_samples: u64, n_holdout: u64) -> u64 {
    let samples = |n: u64| n.saturating_mul(2 * d as u64 + 4);
    let fitted = match moment::packed_len(d) {
        Some(len) if d <= max_moment_dim => 2 * 4 * len as u64,
        _ => samples(n_samples),
    };
    fitted.saturating_add(samples(n_holdout))
}
