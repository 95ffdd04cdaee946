//! The tensors of a model, with random weights.

use format::{MatrixId, MatrixShape, Role};
use ggml::Type;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::Model;

/// How the singular values of a random matrix fall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spectrum {
    /// Independent normal entries: nothing to learn for a dictionary.
    Flat,
    /// Entries of which the given share of the energy lies in this many random directions, plus
    /// independent ones.
    LowRank {
        /// Number of directions.
        rank: usize,
        /// Share of the energy, 0 to 1.
        share: f32,
    },
    /// Directions whose variance falls as `index^-exponent`, as trained matrices roughly do.
    Power {
        /// Exponent, above 0.
        exponent: f32,
        /// Number of directions.
        rank: usize,
    },
}

/// A tensor to be written.
pub struct Tensor {
    pub name: String,
    pub ty: Type,
    /// Innermost first.
    pub dims: Vec<usize>,
}

impl Tensor {
    /// Values in ggml order. Vectors are norms: ones. Matrices are scaled so that they keep the size of
    /// their input.
    pub fn values(&self, seed: u64, spectrum: Spectrum) -> Vec<f32> {
        match *self.dims {
            [d_in, d_out] => {
                random_matrix(MatrixShape::new(d_in, d_out), spectrum, seed ^ hash(&self.name))
            }
            _ => vec![1.0; self.dims.iter().product()],
        }
    }
}

/// A random matrix whose rows have an expected square norm of 1.
///
/// # Shapes
/// The result is `[d_in, d_out]`.
#[must_use]
pub fn random_matrix(shape: MatrixShape, spectrum: Spectrum, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = |n: usize, scale: f32| -> Vec<f32> {
        (0..n).map(|_| scale * Distribution::<f32>::sample(&StandardNormal, &mut rng)).collect()
    };
    let (variances, noise) = match spectrum {
        Spectrum::Flat => (Vec::new(), 1.0),
        Spectrum::LowRank { rank, share } => (vec![share / rank as f32; rank], 1.0 - share),
        Spectrum::Power { exponent, rank } => {
            let raw: Vec<f32> = (1..=rank).map(|i| (i as f32).powf(-exponent)).collect();
            let sum: f32 = raw.iter().sum();
            (raw.iter().map(|v| v / sum).collect(), 0.0)
        }
    };
    let scale = (shape.d_in as f32).sqrt().recip();
    let mut weights = normal(shape.n_weights(), noise.sqrt() * scale);
    let directions: Vec<Vec<f32>> = variances.iter().map(|_| normal(shape.d_in, scale)).collect();
    for row in weights.chunks_mut(shape.d_in) {
        for (direction, variance) in directions.iter().zip(&variances) {
            let coefficient = normal(1, variance.sqrt())[0];
            row.iter_mut().zip(direction).for_each(|(w, d)| *w += coefficient * d);
        }
    }
    weights
}

/// All tensors of `model`, in the order in which llama.cpp's converters write them.
pub fn all(model: &Model) -> Vec<Tensor> {
    let (e, v) = (model.n_embd, model.n_vocab);
    let mut tensors = vec![matrix("token_embd.weight", model.other_type, e, v)];
    for layer in 0..model.n_layers + model.n_mtp_layers {
        tensors.extend(layer_tensors(model, layer));
        if layer >= model.n_layers {
            tensors.extend(mtp_tensors(model, layer));
        }
    }
    tensors.push(norm("output_norm.weight", e));
    tensors.push(matrix("output.weight", model.other_type, e, v));
    tensors
}

fn layer_tensors(model: &Model, layer: usize) -> Vec<Tensor> {
    let (e, f) = (model.n_embd, model.n_ff);
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let ffn =
        |role, d_in, d_out| matrix(&MatrixId { layer, role }.weight(), model.ffn_type, d_in, d_out);
    let architecture = model.architecture();
    let (norms_behind, norms_before) = (model.n_mtp_layers > 0, architecture != "exaone4");
    let mut tensors = Vec::new();
    if norms_before {
        tensors.push(norm(&name("attn_norm"), e));
    }
    for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        tensors.push(matrix(&name(part), model.other_type, e, e));
    }
    if architecture == "exaone4" {
        let d_head = e / model.n_heads;
        tensors.extend(["attn_q_norm", "attn_k_norm"].map(|part| norm(&name(part), d_head)));
    }
    if norms_behind {
        tensors.push(norm(&name("post_attention_norm"), e));
    }
    if norms_before {
        tensors.push(norm(&name("ffn_norm"), e));
    }
    if model.has_gate {
        tensors.push(ffn(Role::Gate, e, f));
    }
    let up = if architecture == "glm4" { 2 * f } else { f };
    tensors.extend([ffn(Role::Up, e, up), ffn(Role::Down, f, e)]);
    if norms_behind {
        tensors.push(norm(&name("post_ffw_norm"), e));
    }
    tensors
}

/// What layers for multi-token prediction have besides: the next token's embedding joins the hidden state.
fn mtp_tensors(model: &Model, layer: usize) -> [Tensor; 3] {
    let e = model.n_embd;
    let name = |part: &str| format!("blk.{layer}.nextn.{part}.weight");
    [
        matrix(&name("eh_proj"), model.other_type, 2 * e, e),
        norm(&name("enorm"), e),
        norm(&name("hnorm"), e),
    ]
}

fn matrix(name: &str, ty: Type, d_in: usize, d_out: usize) -> Tensor {
    Tensor { name: name.to_owned(), ty, dims: vec![d_in, d_out] }
}

fn norm(name: &str, n: usize) -> Tensor {
    Tensor { name: name.to_owned(), ty: Type::F32, dims: vec![n] }
}

/// FNV-1a, so that tensors differ and stay the same from run to run.
fn hash(name: &str) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|v| f64::from(*v).powi(2)).sum()
    }

    #[test]
    fn rows_have_unit_norm_on_average_whatever_the_spectrum() {
        let shape = MatrixShape::new(128, 256);
        for spectrum in [
            Spectrum::Flat,
            Spectrum::LowRank { rank: 32, share: 0.8 },
            Spectrum::Power { exponent: 0.5, rank: 64 },
        ] {
            let mean = energy(&random_matrix(shape, spectrum, 3)) / 256.0;
            assert!((mean - 1.0).abs() < 0.2, "{spectrum:?}: {mean}");
        }
    }

    #[test]
    fn seeds_decide() {
        let shape = MatrixShape::new(8, 4);
        let matrix = |seed| random_matrix(shape, Spectrum::Flat, seed);
        assert_eq!(matrix(1), matrix(1));
        assert_ne!(matrix(1), matrix(2));
    }
}
