//! From an imatrix to the weights of single inputs.

use std::collections::BTreeMap;
use std::path::Path;

use format::MatrixId;
use ggml::imatrix::{Imatrix, OfExpert};

use crate::{Error, Source};

/// How mean squares become the importance that learning and encoding use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shaping {
    /// Inputs below this share of the mean of E[x^2] count as if they were there.
    pub eps: f32,
    /// The floored mean squares are raised to this power.
    pub power: f32,
}

/// What all experts of a layer have seen together counts as so many tokens that one of them has seen: few tell the mean square
/// of an input with a long tail.
const SHARED_TOKENS: f64 = 16.0;

/// Mean squares of the inputs of one tensor, in both forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// E[x_i^2] as measured, scaled to mean 1: what metrics use, `[d_in]`, or [d_in, n_experts] where it is known what each has
    /// seen.
    pub measured: Vec<f32>,
    /// After [`Shaping`], scaled to mean 1: what learning and encoding use, `[d_in]`, all experts together.
    pub shaped: Vec<f32>,
    /// Of each expert; empty where that is not known.
    pub experts: Vec<ExpertImportance>,
}

/// What one expert has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertImportance {
    /// As [`Importance::shaped`], `[d_in]`.
    pub shaped: Vec<f32>,
    /// How many inputs that comes from.
    pub n_inputs: u64,
}

/// Reads the importance of the inputs of every one of `tensors` that text runs through from the imatrix at `path`.
///
/// # Errors
/// [`Error::Imatrix`] if an entry is missing or does not fit, or [`Error::ImatrixUse`].
pub fn read_importance(
    path: &Path,
    source: &Source,
    tensors: &[MatrixId],
    shaping: Shaping,
) -> Result<BTreeMap<MatrixId, Importance>, Error> {
    let imatrix = Imatrix::open(path)?;
    let read = |&tensor: &MatrixId| {
        let weight = tensor.weight();
        let matrix = source.matrix(tensor);
        let d_in = matrix.shape.d_in;
        let mean_squares = imatrix.importance(&weight, d_in, matrix.n_experts)?;
        let experts = matrix.n_experts.map(|n| imatrix.experts(&weight, d_in, n)).transpose()?;
        let importance = Importance::new(&weight, &mean_squares, shaping)
            .and_then(|all| {
                all.of_experts(&weight, &mean_squares, &experts.unwrap_or_default(), shaping)
            })
            .map_err(|reason| Error::ImatrixUse { path: path.to_owned(), reason })?;
        Ok((tensor, importance))
    };
    tensors.iter().filter(|tensor| !source.is_mtp(**tensor)).map(read).collect()
}

impl Importance {
    /// The importance of every input of `weight` from its mean squares E[x_i^2], `[d_in]`, none of them
    /// negative.
    ///
    /// # Errors
    /// A reason, without the file's name, if nothing usable is left.
    pub(crate) fn new(
        weight: &str,
        mean_squares: &[f32],
        shaping: Shaping,
    ) -> Result<Self, String> {
        let mean = mean(mean_squares);
        if mean <= 0.0 {
            return Err(format!("{weight}: all mean squares are 0: make it again with more text"));
        }
        let shape_one =
            |v: &f32| f64::from(*v).max(f64::from(shaping.eps) * mean).powf(shaping.power.into());
        let shaped: Vec<f64> = mean_squares.iter().map(shape_one).collect();
        let shaped_mean = shaped.iter().sum::<f64>() / shaped.len() as f64;
        if !(shaped_mean.is_finite() && shaped_mean > 0.0) {
            return Err(format!(
                "{weight}: --imatrix-power {} leaves no usable weights",
                shaping.power
            ));
        }
        Ok(Self {
            measured: mean_squares.iter().map(|v| (f64::from(*v) / mean) as f32).collect(),
            shaped: shaped.iter().map(|v| (v / shaped_mean) as f32).collect(),
            experts: Vec::new(),
        })
    }

    /// How many inputs of each expert are known, if that is.
    pub(crate) fn expert_inputs(&self) -> impl Iterator<Item = u64> {
        self.experts.iter().map(|expert| expert.n_inputs)
    }

    /// The same with what each of `experts` has seen beside the mean squares of all, [d_in].
    ///
    /// # Errors
    /// As [`Self::new`].
    fn of_experts(
        mut self,
        weight: &str,
        all: &[f32],
        experts: &[OfExpert],
        shaping: Shaping,
    ) -> Result<Self, String> {
        if !experts.is_empty() {
            self.measured.clear();
        }
        for expert in experts {
            let (own, n) = (&expert.mean_squares, f64::from(expert.count));
            let one = Self::new(weight, &blended(all, own, n), shaping)?;
            self.measured.extend(one.measured);
            let n_inputs = expert.count as u64; // not negative, checked
            self.experts.push(ExpertImportance { shaped: one.shaped, n_inputs });
        }
        Ok(self)
    }
}

/// The mean squares `own` of what an expert has seen of `n` tokens and those of all, made as large as its own; weighed by what it
/// has seen.
pub(crate) fn blended(all: &[f32], own: &[f32], n: f64) -> Vec<f32> {
    let (of_own, of_all) = (mean(own), mean(all));
    let n = if of_own > 0.0 && of_all > 0.0 { n } else { 0.0 };
    let weight = n / (n + SHARED_TOKENS);
    let scale = if n > 0.0 { of_own / of_all } else { 1.0 };
    let blend = |(own, all): (&f32, &f32)| {
        (weight * f64::from(*own) + (1.0 - weight) * scale * f64::from(*all)) as f32
    };
    own.iter().zip(all).map(blend).collect()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Shaping = Shaping { eps: 0.0, power: 1.0 };

    fn new(values: &[f32], shaping: Shaping) -> Result<Importance, String> {
        Importance::new("blk.0.ffn_up.weight", values, shaping)
    }

    #[test]
    fn the_scale_does_not_matter() {
        let a = new(&[1.0, 2.0, 3.0, 2.0], PLAIN).unwrap();
        assert_eq!(a, new(&[4.0, 8.0, 12.0, 8.0], PLAIN).unwrap());
        assert_eq!(a.measured, [0.5, 1.0, 1.5, 1.0]);
        assert_eq!(a.shaped, a.measured);
    }

    #[test]
    fn floor_and_power_shape_learning_but_not_measuring() {
        let shaping = Shaping { eps: 0.5, power: 0.5 };
        let i = new(&[0.0, 4.0, 0.0, 0.0], shaping).unwrap();
        assert_eq!(i.measured, [0.0, 4.0, 0.0, 0.0]);
        let ratio = f64::from(i.shaped[1]) / f64::from(i.shaped[0]);
        assert!((ratio - 8f64.sqrt()).abs() < 1e-6);
        assert_eq!(
            new(&[0.0, 4.0, 0.0, 0.0], Shaping { eps: 0.1, power: 0.0 }).unwrap().shaped,
            [1.0; 4]
        );
    }

    #[test]
    fn an_expert_counts_as_much_as_it_has_seen() {
        let all = [1.0, 3.0];
        let expert = |a, b, count| OfExpert { mean_squares: vec![a, b], count };
        let experts = [expert(0.0, 0.0, 0.0), expert(12.0, 4.0, 16.0), expert(6.0, 2.0, 1.6e6)];
        let of = |experts: &[OfExpert]| {
            let weight = "blk.0.ffn_up_exps.weight";
            new(&all, PLAIN).unwrap().of_experts(weight, &all, experts, PLAIN).unwrap()
        };
        let found = of(&experts);
        assert_eq!(found.shaped, [0.5, 1.5]);
        let shaped: Vec<_> = found.experts.iter().map(|e| e.shaped.clone()).collect();
        // Nothing seen: as all; as many tokens as all count: halfway; many: its own.
        assert_eq!(shaped[..2], [[0.5, 1.5], [1.0, 1.0]]);
        assert!((shaped[2][0] - 1.5).abs() < 1e-4, "{shaped:?}");
        assert_eq!(found.measured, shaped.concat());
        assert_eq!(found.experts[1].n_inputs, 16);
        assert_eq!(of(&[]), new(&all, PLAIN).unwrap());
    }

    #[test]
    fn an_empty_imatrix_is_refused() {
        assert!(new(&[0.0; 4], PLAIN).unwrap_err().contains("all mean squares are 0"));
        let shaping = Shaping { eps: 0.0, power: -1.0 };
        assert!(new(&[0.0, 1.0, 1.0, 1.0], shaping).unwrap_err().contains("--imatrix-power -1"));
    }
}
