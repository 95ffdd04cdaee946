//! The families of models that are run with gradients: how each computes a layer, as data.
//!
//! Source: the graphs of the pinned llama.cpp, `src/models/<architecture>.cpp`. A family whose layers are made of
//! these parts is an entry in `FAMILIES`.

use crate::fused::Activation;
use crate::rotary::Pairing;

/// Where a layer normalizes: what goes into attention and FFN, what comes out of them, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norms {
    Before,
    Behind,
    Both,
}

/// Over what queries and keys are normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadNorm {
    None,
    /// Over each head.
    Head,
    /// Over all heads together.
    Whole,
}

/// A factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    One,
    /// The root of n_embd.
    RootOfWidth,
    /// What the metadata say, 1 where they say nothing or 0.
    Key(&'static str),
}

/// Which layers see a window of the last tokens only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Windows {
    /// Where the metadata do not tell the length; without one, no layer has a window.
    pub(crate) length: Option<usize>,
    /// Of so many layers the last sees everything.
    pub(crate) period: usize,
    /// How positions turn in them.
    pub(crate) base: WindowBase,
}

/// The base of the angles in layers with a window, where the metadata do not tell it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WindowBase {
    /// That of the other layers, with their scaling; may be told.
    Shared,
    /// That of the other layers, without their scaling; cannot be told.
    Unscaled,
    /// A base of their own, without scaling; may be told.
    Own(f32),
}

/// Which layers know nothing of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unrotated {
    None,
    /// The last of so many.
    EveryLast(usize),
    /// All, where this flag in the metadata is off.
    WhereOff(&'static str),
}

/// Factors of the positions' frequencies that a file may bring along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrequencyFactors {
    None,
    /// For contexts up to the length that the model was first trained with.
    Short,
    /// One list, or [`Self::Short`] where the scaling is of that kind.
    Any,
}

/// How far scores and logits go at most, where the metadata do not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Caps {
    /// Of the attention's scores.
    pub(crate) scores: Option<f32>,
    /// Of the logits.
    pub(crate) logits: Option<f32>,
    /// Whether the metadata can tell.
    pub(crate) can_be_told: [bool; 2],
}

/// How models of one architecture compute a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Family {
    pub(crate) architecture: &'static str,
    pub(crate) pairing: Pairing,
    pub(crate) activation: Activation,
    pub(crate) norms: Norms,
    pub(crate) head_norm: HeadNorm,
    /// Gate and up are one matrix, gate first.
    pub(crate) has_gate_in_up: bool,
    /// Of the embedded tokens.
    pub(crate) embedding: Factor,
    /// Of what a layer adds to the hidden state.
    pub(crate) residual: Factor,
    /// What logits are divided by.
    pub(crate) logit_divisor: Factor,
    /// Metadata key of the scores' factor, which is else 1 / sqrt(head_dim).
    pub(crate) score_key: Option<&'static str>,
    /// Number of layers of the size in which scores are scaled by 1 / sqrt(n_embd / heads).
    pub(crate) scores_by_width_at: Option<usize>,
    pub(crate) windows: Option<Windows>,
    pub(crate) unrotated: Unrotated,
    pub(crate) factors: FrequencyFactors,
    pub(crate) caps: Caps,
}

const NO_CAPS: Caps = Caps { scores: None, logits: None, can_be_told: [false; 2] };

/// A llama without biases, which others are told by their differences from.
const PLAIN: Family = Family {
    architecture: "llama",
    pairing: Pairing::Neighbours,
    activation: Activation::Silu,
    norms: Norms::Before,
    head_norm: HeadNorm::None,
    has_gate_in_up: false,
    embedding: Factor::One,
    residual: Factor::One,
    logit_divisor: Factor::One,
    score_key: None,
    scores_by_width_at: None,
    windows: None,
    unrotated: Unrotated::None,
    factors: FrequencyFactors::None,
    caps: NO_CAPS,
};

const GEMMA: Family = Family {
    architecture: "gemma",
    pairing: Pairing::Halves,
    activation: Activation::Gelu,
    embedding: Factor::RootOfWidth,
    ..PLAIN
};

const FAMILIES: [Family; 10] = [
    Family { factors: FrequencyFactors::Any, ..PLAIN },
    Family { architecture: "qwen2", pairing: Pairing::Halves, ..PLAIN },
    Family { architecture: "qwen3", pairing: Pairing::Halves, head_norm: HeadNorm::Head, ..PLAIN },
    GEMMA,
    Family {
        architecture: "gemma2",
        norms: Norms::Both,
        scores_by_width_at: Some(46),
        windows: Some(Windows { length: Some(4096), period: 2, base: WindowBase::Shared }),
        caps: Caps { scores: Some(50.0), logits: Some(30.0), can_be_told: [true; 2] },
        ..GEMMA
    },
    Family {
        architecture: "gemma3",
        norms: Norms::Both,
        head_norm: HeadNorm::Head,
        scores_by_width_at: Some(62),
        windows: Some(Windows { length: None, period: 6, base: WindowBase::Own(10_000.0) }),
        caps: Caps { can_be_told: [false, true], ..NO_CAPS },
        ..GEMMA
    },
    Family {
        architecture: "phi3",
        pairing: Pairing::Halves,
        has_gate_in_up: true,
        factors: FrequencyFactors::Short,
        ..PLAIN
    },
    Family {
        architecture: "granite",
        embedding: Factor::Key("embedding_scale"),
        residual: Factor::Key("residual_scale"),
        logit_divisor: Factor::Key("logit_scale"),
        score_key: Some("attention.scale"),
        unrotated: Unrotated::WhereOff("rope.scaling.finetuned"),
        factors: FrequencyFactors::Any,
        ..PLAIN
    },
    Family {
        architecture: "olmo2",
        pairing: Pairing::Halves,
        norms: Norms::Behind,
        head_norm: HeadNorm::Whole,
        windows: Some(Windows { length: None, period: 4, base: WindowBase::Unscaled }),
        ..PLAIN
    },
    Family { architecture: "smollm3", unrotated: Unrotated::EveryLast(4), ..PLAIN },
];

static KNOWN: [Family; FAMILIES.len()] = FAMILIES;

impl Family {
    /// That of `architecture`.
    pub(crate) fn of(architecture: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|family| family.architecture == architecture)
    }
}

/// The architectures that are run with gradients.
pub fn families() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|family| family.architecture)
}
