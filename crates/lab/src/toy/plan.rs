//! The list of cases: every family on every shape, with and without noise, base, weights and F16.

use clap::ValueEnum;
use format::MatrixShape;
use format::seeddelta::{BaseSpec, BaseType, PartSpec};
use seeddelta::{Delta, SeedDeltaCodec};
use serde::Serialize;

/// Noise above this could hide the weights that a base is to recover (they are at least 1), and no
/// closed form would hold.
pub const MAX_NOISE: f64 = 0.05;
/// Largest number of weights of a shape: the whole matrix is applied to d_in inputs in double precision.
pub const MAX_WEIGHTS: usize = 1 << 18;
/// Low rank tries every rank up to this one, then doubles.
const MAX_EVERY_RANK: usize = 64;
/// Signal rank of the noisy low-rank matrices.
pub const SIGNAL_RANK: usize = 4;

/// What a matrix is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
pub enum Family {
    /// A multiple of the identity, base `identity`.
    #[value(name = "A1", alias = "a1")]
    A1,
    /// A diagonal matrix, base `diagonal`.
    #[value(name = "A2", alias = "a2")]
    A2,
    /// A product U diag(s) V^T, base `lowrank:r` for every r.
    #[value(name = "A3", alias = "a3")]
    A3,
    /// A circulant matrix, base `circulant`.
    #[value(name = "A4", alias = "a4")]
    A4,
    /// Identity plus many weights of all sizes, base `identity` with a delta of K per row.
    #[value(name = "A5", alias = "a5")]
    A5,
    /// A block-diagonal matrix, base `block:b`.
    #[value(name = "A6", alias = "a6")]
    A6,
}

impl Family {
    /// What the family is about, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::A1 => "identity",
            Self::A2 => "diagonal",
            Self::A3 => "low rank, every r",
            Self::A4 => "circulant",
            Self::A5 => "identity + top-K delta",
            Self::A6 => "block diagonal",
        }
    }
}

/// One matrix, one way of coding it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// What the matrix is made of.
    pub family: Family,
    /// Shape, d_in x d_out.
    pub shape: MatrixShape,
    /// Number of the repetition; each has its own seed.
    pub repeat: u32,
    /// Standard deviation of the white noise added to the matrix, whose own weights are about 1.
    pub noise: f64,
    /// Whether inputs have unequal mean squares that fit and error take into account.
    pub weighted: bool,
    /// The codec's parameters.
    pub codec: SeedDeltaCodec,
}

impl Case {
    /// Entries per row of the delta.
    #[must_use]
    pub fn delta_k(&self) -> usize {
        match self.codec.delta {
            Delta::None => 0,
            Delta::Coo { k } => k,
        }
    }

    /// Whether there is a base.
    #[must_use]
    pub fn has_base(&self) -> bool {
        !self.codec.base.parts().is_empty()
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MatrixShape { d_in, d_out } = self.shape;
        let (base, storage) = (&self.codec.base, self.codec.base_type);
        write!(f, "{:?} {d_in}x{d_out} #{} {base} {storage}", self.family, self.repeat)?;
        write!(f, " K={} noise={}", self.delta_k(), self.noise)?;
        if self.weighted { f.write_str(" weighted") } else { Ok(()) }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Families, in order.
    pub families: Vec<Family>,
    /// Shapes.
    pub shapes: Vec<MatrixShape>,
    /// Noise levels, at most [`MAX_NOISE`].
    pub noise: Vec<f64>,
    /// Repetitions with seeds of their own.
    pub repeats: u32,
}

/// Every case of `options`, also those for which [`crate::toy::problem::make`] then finds no closed form.
#[must_use]
pub fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &family in &options.families {
        for &shape in &options.shapes {
            for repeat in 0..options.repeats {
                for &noise in &options.noise {
                    for weighted in [false, true] {
                        let codecs = codecs(family, shape, noise);
                        cases.extend(codecs.into_iter().map(|codec| Case {
                            family,
                            shape,
                            repeat,
                            noise,
                            weighted,
                            codec,
                        }));
                    }
                }
            }
        }
    }
    cases
}

/// The codecs that a family tries: its own base in both storage types, and no base.
fn codecs(family: Family, shape: MatrixShape, noise: f64) -> Vec<SeedDeltaCodec> {
    let mut codecs = Vec::new();
    for base in bases(family, shape, noise) {
        for base_type in [BaseType::F32, BaseType::F16] {
            for delta in deltas(family, shape) {
                let base = BaseSpec::one(base);
                codecs.push(SeedDeltaCodec { base, base_type, row_scale: false, delta });
            }
        }
    }
    let k = if noise == 0.0 { shape.d_in.div_ceil(4) } else { structured_per_row(family, shape) };
    codecs.push(SeedDeltaCodec {
        base: BaseSpec::none(),
        base_type: BaseType::F16,
        row_scale: false,
        delta: Delta::Coo { k },
    });
    codecs
}

fn bases(family: Family, shape: MatrixShape, noise: f64) -> Vec<PartSpec> {
    let least = shape.d_in.min(shape.d_out);
    match family {
        Family::A1 | Family::A5 => vec![PartSpec::Identity],
        Family::A2 => vec![PartSpec::Diagonal],
        Family::A4 => vec![PartSpec::Circulant],
        Family::A6 => vec![PartSpec::Block { size: block_size(shape) }],
        Family::A3 => {
            let most = if noise > 0.0 { least.min(SIGNAL_RANK) } else { least };
            let ranks = std::iter::successors(Some(1usize), |&r| {
                let next = if r < MAX_EVERY_RANK { r + 1 } else { r * 2 };
                (r < most).then_some(next.min(most))
            });
            ranks.map(|rank| PartSpec::LowRank { rank }).collect()
        }
    }
}

fn deltas(family: Family, shape: MatrixShape) -> Vec<Delta> {
    if family != Family::A5 {
        return vec![Delta::None];
    }
    let mut ks = vec![1, 2, 5, shape.d_in / 2, shape.d_in];
    ks.retain(|&k| k >= 1 && k <= shape.d_in);
    ks.sort_unstable();
    ks.dedup();
    ks.into_iter().map(|k| Delta::Coo { k }).collect()
}

/// Size of the blocks in family A6: about a fifth of the matrix, so that it often does not divide it.
#[must_use]
pub fn block_size(shape: MatrixShape) -> usize {
    shape.d_in.max(shape.d_out).div_ceil(5)
}

/// The most weights in a row of the matrix that [`crate::toy::problem`] makes for a case with noise and
/// without a base: where the delta has to find them all.
fn structured_per_row(family: Family, shape: MatrixShape) -> usize {
    let tiles_per_row = |b: usize| shape.d_in.div_ceil(b).div_ceil(shape.d_out.div_ceil(b));
    let k = match family {
        Family::A1 | Family::A2 | Family::A5 => tiles_per_row(1),
        Family::A6 => tiles_per_row(block_size(shape)) * block_size(shape),
        Family::A3 | Family::A4 => SIGNAL_RANK,
    };
    k.min(shape.d_in)
}
