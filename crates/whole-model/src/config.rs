//! Dimensions and constants of a model, from its metadata.

use ggml::gguf::{Array, GgufFile, Value};

use crate::TuningError;
use crate::family::{Factor, Family, FrequencyFactors, Unrotated, WindowBase, Windows};
use crate::fused::SoftCap;
use crate::rotary::Rotary;

/// Factors of the frequencies.
const FACTORS: &str = "rope_freqs.weight";
/// The same for contexts up to the length that the model was first trained with.
const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// The same for longer ones, which no text that is looked at here has.
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Tensors that are read for [`Config`], or may be there.
pub(crate) const FREQUENCY_TENSORS: [&str; 3] = [FACTORS, SHORT_FACTORS, LONG_FACTORS];

/// How one layer looks at other tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Which of [`Config::rotaries`] turns queries and keys.
    pub(crate) rotary: Option<usize>,
    /// How many tokens are seen, the own one among them; all before it where there is none.
    pub(crate) window: Option<usize>,
}

/// Dimensions and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: &'static Family,
    /// Number of layers.
    pub(crate) n_layer: usize,
    /// Width of the hidden state.
    pub(crate) n_embd: usize,
    /// Query heads.
    pub(crate) n_head: usize,
    /// Key and value heads.
    pub(crate) n_head_kv: usize,
    /// Length of a head.
    pub(crate) head_dim: usize,
    /// Added to the mean square before the root.
    pub(crate) rms_eps: f32,
    /// Factor of the embedded tokens.
    pub(crate) embedding_scale: f32,
    /// Factor of what a layer adds to the hidden state.
    pub(crate) residual_scale: f32,
    /// Factor of the logits, before their cap.
    pub(crate) logit_scale: f32,
    /// How far logits go at most.
    pub(crate) logit_cap: SoftCap,
    /// Factor of the attention's scores, before their cap.
    pub(crate) score_scale: f32,
    /// How far scores go at most.
    pub(crate) score_cap: SoftCap,
    /// The ways in which positions turn queries and keys.
    pub(crate) rotaries: Vec<Rotary>,
    /// By layer.
    pub(crate) views: Vec<View>,
}

impl Config {
    /// Reads it from `file`.
    ///
    /// # Errors
    /// [`TuningError::Unsupported`] or [`TuningError::Gguf`].
    pub(crate) fn read(file: &GgufFile) -> Result<Self, TuningError> {
        let architecture = file.architecture()?;
        let family = Family::of(&architecture)
            .ok_or_else(|| unsupported(file, format!("is of architecture '{architecture}'")))?;
        let keys = Keys { file, family };
        keys.check()?;
        let (n_embd, n_head) =
            (keys.required("embedding_length")?, keys.required("attention.head_count")?);
        let n_head_kv = keys.number("attention.head_count_kv")?.unwrap_or(n_head);
        let head_dim = keys.number("attention.key_length")?.unwrap_or(n_embd / n_head);
        let n_rotated = keys.number("rope.dimension_count")?.unwrap_or(head_dim);
        if n_head_kv == 0 || n_head % n_head_kv != 0 || head_dim == 0 {
            let reason = format!("has {n_head} heads of {head_dim} values over {n_head_kv}");
            return Err(unsupported(file, reason));
        }
        if keys.number("attention.value_length")?.is_some_and(|v| v != head_dim) {
            return Err(unsupported(file, "has values of another length than keys".to_owned()));
        }
        if n_rotated < 2 || n_rotated % 2 != 0 || n_rotated > head_dim {
            let reason = format!("turns {n_rotated} of the {head_dim} values of a head");
            return Err(unsupported(file, reason));
        }
        let n_layer = keys.required("block_count")?;
        let (rotaries, views) = keys.views(n_layer, n_rotated)?;
        let [score_cap, logit_cap] = keys.caps()?;
        Ok(Self {
            family,
            n_layer,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            rms_eps: keys.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            embedding_scale: keys.factor(family.embedding, n_embd)?,
            residual_scale: keys.factor(family.residual, n_embd)?,
            logit_scale: keys.factor(family.logit_divisor, n_embd)?.recip(),
            logit_cap,
            score_scale: keys.score_scale(n_layer, [n_embd, n_head, head_dim])?,
            score_cap,
            rotaries,
            views,
        })
    }
}

fn unsupported(file: &GgufFile, reason: String) -> TuningError {
    TuningError::Unsupported { path: file.path().to_owned(), reason }
}

/// The metadata of a model of one family.
struct Keys<'a> {
    file: &'a GgufFile,
    family: &'static Family,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.family.architecture)
    }

    fn number(&self, key: &str) -> Result<Option<usize>, TuningError> {
        Ok(self.file.u32(&self.name(key))?.map(|v| v as usize))
    }

    fn required(&self, key: &str) -> Result<usize, TuningError> {
        let found = self.number(key)?.filter(|v| *v > 0);
        found.ok_or_else(|| unsupported(self.file, format!("has no usable '{}'", self.name(key))))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, TuningError> {
        Ok(self.file.f32(&self.name(key))?)
    }

    /// Refuses what no family has here.
    fn check(&self) -> Result<(), TuningError> {
        let refuse = |reason: String| Err(unsupported(self.file, reason));
        if self.number("expert_count")?.is_some_and(|n| n > 0) {
            return refuse("is a mixture of experts".to_owned());
        }
        let causal = self.name("attention.causal");
        if self.file.bool(&causal)? == Some(false) {
            return refuse(format!("looks at later tokens ({causal})"));
        }
        let images = self.name("deepstack_mapping");
        let is_some = |list: Array| matches!(list, Array::I32(v) if v.iter().any(|n| *n >= 0));
        if let Some(Value::Array(list)) = self.file.value(&images)
            && is_some(list)
        {
            return refuse(format!("adds to its hidden states between layers ({images})"));
        }
        Ok(())
    }

    fn factor(&self, factor: Factor, n_embd: usize) -> Result<f32, TuningError> {
        Ok(match factor {
            Factor::One => 1.0,
            Factor::RootOfWidth => (n_embd as f32).sqrt(),
            Factor::Key(key) => self.float(key)?.filter(|v| *v != 0.0).unwrap_or(1.0),
        })
    }

    /// The factor of scores with `[n_embd, n_head, head_dim]`.
    fn score_scale(
        &self,
        n_layer: usize,
        [n_embd, n_head, head_dim]: [usize; 3],
    ) -> Result<f32, TuningError> {
        let told = self.family.score_key.map(|key| self.float(key)).transpose()?.flatten();
        let length = match self.family.scores_by_width_at {
            Some(n) if n == n_layer => n_embd / n_head,
            _ => head_dim,
        };
        Ok(told.filter(|v| *v != 0.0).unwrap_or_else(|| (length as f32).sqrt().recip()))
    }

    /// Of scores and logits.
    fn caps(&self) -> Result<[SoftCap; 2], TuningError> {
        let caps = self.family.caps;
        let mut found = [caps.scores, caps.logits];
        let keys = ["attn_logit_softcapping", "final_logit_softcapping"];
        for ((cap, can_be_told), key) in found.iter_mut().zip(caps.can_be_told).zip(keys) {
            if can_be_told && let Some(told) = self.float(key)? {
                *cap = Some(told);
            }
            *cap = cap.filter(|v| *v != 0.0);
        }
        Ok(found.map(SoftCap))
    }

    /// How positions turn, and how each layer looks at other tokens.
    fn views(
        &self,
        n_layer: usize,
        n_rotated: usize,
    ) -> Result<(Vec<Rotary>, Vec<View>), TuningError> {
        let (family, file) = (self.family, self.file);
        let base = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let (scale, kind) = self.scaling()?;
        let magnitude = self.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let rotary =
            |base, scale, magnitude| Rotary::new(family.pairing, n_rotated, base, scale, magnitude);
        let mut all = rotary(base, scale, magnitude);
        if let Some(tensor) = self.factors(&kind).and_then(|name| file.tensor(name)) {
            if tensor.n_elements() != n_rotated / 2 {
                let reason = format!("has a tensor '{}' of {:?}", tensor.name(), tensor.dims());
                return Err(unsupported(file, reason));
            }
            all.divide(&file.to_f32(tensor)?);
        }
        let told = self.float("rope.freq_base_swa")?;
        let windowed = match family.windows.map(|w| w.base) {
            None => None,
            Some(WindowBase::Shared) => Some(rotary(told.unwrap_or(base), scale, magnitude)),
            Some(WindowBase::Unscaled) => Some(rotary(base, 1.0, 1.0)),
            Some(WindowBase::Own(own)) => Some(rotary(told.unwrap_or(own), 1.0, magnitude)),
        };
        let unrotated_all = match family.unrotated {
            Unrotated::WhereOff(key) => file.bool(&self.name(key))? == Some(false),
            _ => false,
        };
        let windows = self.windows(n_layer)?;
        let view = |(n, window): (usize, Option<usize>)| {
            let last = |period: usize| (n + 1) % period == 0;
            let is_unrotated = matches!(family.unrotated, Unrotated::EveryLast(p) if last(p));
            let rotary = usize::from(window.is_some());
            View { rotary: (!is_unrotated && !unrotated_all).then_some(rotary), window }
        };
        let views = windows.into_iter().enumerate().map(view).collect();
        Ok((std::iter::once(all).chain(windowed).collect(), views))
    }

    /// The window of each layer.
    fn windows(&self, n_layer: usize) -> Result<Vec<Option<usize>>, TuningError> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let none = Ok(vec![None; n_layer]);
        let Some(Windows { length, period, .. }) = self.family.windows else { return none };
        let told = self.number("attention.sliding_window")?;
        let Some(length) = told.or(length).filter(|n| *n > 0) else { return none };
        let of = |is_windowed: bool| is_windowed.then_some(length);
        let listed: Option<Vec<bool>> = match self.file.value(&self.name(PATTERN)) {
            Some(Value::Array(Array::Bool(list))) => Some(list),
            Some(Value::Array(Array::U32(list))) => Some(list.iter().map(|v| *v != 0).collect()),
            Some(Value::Array(Array::I32(list))) => Some(list.iter().map(|v| *v != 0).collect()),
            _ => None,
        };
        if let Some(list) = listed {
            if list.len() != n_layer {
                let reason = format!("has {} entries in '{}'", list.len(), self.name(PATTERN));
                return Err(unsupported(self.file, reason));
            }
            return Ok(list.into_iter().map(of).collect());
        }
        let period = self.number(PATTERN)?.unwrap_or(period);
        Ok((0..n_layer).map(|n| of(period == 0 || n % period < period - 1)).collect())
    }

    /// What positions are multiplied with, and the kind of that scaling.
    fn scaling(&self) -> Result<(f32, String), TuningError> {
        let kind = self.file.string(&self.name("rope.scaling.type"))?;
        let kind = kind.unwrap_or_else(|| "linear".to_owned());
        if !["none", "linear", "longrope"].contains(&kind.as_str()) {
            return Err(unsupported(self.file, format!("scales its positions ({kind})")));
        }
        let told = match self.float("rope.scaling.factor")? {
            None => self.float("rope.scale_linear")?,
            told => told,
        };
        let factor = told.filter(|v| *v != 0.0 && kind != "none").unwrap_or(1.0);
        Ok((factor.recip(), kind))
    }

    /// The tensor that may hold factors of the frequencies.
    fn factors(&self, scaling: &str) -> Option<&'static str> {
        match self.family.factors {
            FrequencyFactors::None => None,
            FrequencyFactors::Any if scaling != "longrope" => Some(FACTORS),
            FrequencyFactors::Any | FrequencyFactors::Short => Some(SHORT_FACTORS),
        }
    }
}
