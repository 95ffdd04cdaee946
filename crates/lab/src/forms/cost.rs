//! The error of a coded file by layer, and what it adds up to, before the file runs.

use std::collections::BTreeMap;
use std::path::Path;

use format::{MatrixId, MatrixShape, Role};
use ggml::gguf::GgufFile;
use numerics::{MatMul, TiledMatMul};
use seeddelta::SeedDelta;
use serde::Serialize;

use crate::forms::Error;
use crate::forms::trace::Trace;

/// A coded tensor on the dense model's activations.
#[derive(Clone, Debug, Serialize)]
pub struct TensorError {
    /// Which.
    pub tensor: String,
    /// `sqrt(E|(W - W^) x|^2 / E|W x|^2)`.
    pub gap: f64,
    /// `E[Wx . W^x] / sqrt(E|Wx|^2 E|W^x|^2)`.
    pub cosine: f64,
    /// Bytes of its sidecars.
    pub bytes: usize,
    /// Bytes of the dense weight.
    pub dense_bytes: usize,
}

/// A coded layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerError {
    /// Layer.
    pub layer: usize,
    /// `sqrt(E|e_l|^2 / E|FFN_l|^2)`.
    pub relative: f64,
    /// `E|e_l|^2 / E|h_L|^2`, the layer's part in the square of the cost.
    pub share: f64,
}

/// What is foretold of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Coded tensors.
    pub tensors: Vec<TensorError>,
    /// Coded layers.
    pub layers: Vec<LayerError>,
    /// See the crate.
    pub stack_cost: f64,
}

impl Cost {
    /// Largest gap of a tensor.
    #[must_use]
    pub fn worst_gap(&self) -> f64 {
        self.tensors.iter().map(|t| t.gap).fold(0.0, f64::max)
    }

    /// Bytes of the coded tensors over those of the dense weights they replace.
    #[must_use]
    pub fn size_ratio(&self) -> f64 {
        let sum = |of: fn(&TensorError) -> usize| self.tensors.iter().map(of).sum::<usize>() as f64;
        sum(|t| t.bytes) / sum(|t| t.dense_bytes).max(1.0)
    }

    /// Smallest cosine of a tensor.
    #[must_use]
    pub fn worst_cosine(&self) -> f64 {
        self.tensors.iter().map(|t| t.cosine).fold(1.0, f64::min)
    }
}

/// The three matrices of a layer, `[d_in, d_out]`.
struct Ffn {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

/// The cost of the coded file `coded`, made of the dense file `dense`.
///
/// # Errors
/// [`Error::Gguf`], or [`Error::Unfit`] if a file lacks a matrix or the FFN is not gated.
pub fn cost(dense: &Path, coded: &Path, trace: &Trace) -> Result<Cost, Error> {
    let (dense, coded) = (GgufFile::open(dense)?, GgufFile::open(coded)?);
    let mut cost = Cost { tensors: Vec::new(), layers: Vec::new(), stack_cost: 0.0 };
    for (&layer, inputs) in &trace.inputs {
        let tensor = |role| MatrixId { layer, role };
        let (mut changed, mut sizes) = (BTreeMap::new(), BTreeMap::new());
        for role in Role::PLAIN {
            if let Some((weights, bytes)) = decoded(&dense, &coded, tensor(role))? {
                changed.insert(role, weights);
                sizes.insert(role, bytes);
            }
        }
        if changed.is_empty() {
            continue;
        }
        let original = Ffn {
            gate: weights(&dense, tensor(Role::Gate))?,
            up: weights(&dense, tensor(Role::Up))?,
            down: weights(&dense, tensor(Role::Down))?,
        };
        let n_embd = original.down.len() / (original.up.len() / d_in(&dense, tensor(Role::Up))?);
        let hidden = inner(&original, inputs, n_embd);
        for (&role, approx) in &changed {
            let (exact, x) = match role {
                Role::Gate => (&original.gate, inputs),
                Role::Up => (&original.up, inputs),
                _ => (&original.down, &hidden),
            };
            let info = dense.require_tensor(&tensor(role).weight())?;
            let (gap, cosine) = compare(exact, approx, x, info.dims()[0]);
            cost.tensors.push(TensorError {
                tensor: tensor(role).to_string(),
                gap,
                cosine,
                bytes: sizes[&role],
                dense_bytes: info.n_bytes(),
            });
        }
        let mut take =
            |role, exact: &Vec<f32>| changed.remove(&role).unwrap_or_else(|| exact.clone());
        let approx = Ffn {
            gate: take(Role::Gate, &original.gate),
            up: take(Role::Up, &original.up),
            down: take(Role::Down, &original.down),
        };
        let n_ff = hidden.len() / (inputs.len() / n_embd);
        let exact = product(&original.down, &hidden, n_ff);
        let found = product(&approx.down, &inner(&approx, inputs, n_embd), n_ff);
        let square = |v: f32| f64::from(v) * f64::from(v);
        let error: f64 = exact.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
        let energy: f64 = exact.iter().map(|&v| square(v)).sum();
        let n = (inputs.len() / n_embd) as f64;
        let share = error / n / trace.hidden;
        cost.layers.push(LayerError { layer, relative: (error / energy).sqrt(), share });
    }
    cost.stack_cost = cost.layers.iter().map(|l| l.share).sum::<f64>().sqrt();
    Ok(cost)
}

/// `silu(gate x) * (up x)` for every token.
fn inner(ffn: &Ffn, x: &[f32], n_embd: usize) -> Vec<f32> {
    let mut gate = product(&ffn.gate, x, n_embd);
    let up = product(&ffn.up, x, n_embd);
    gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
    gate
}

fn product(w: &[f32], x: &[f32], d_in: usize) -> Vec<f32> {
    let mut y = vec![0.0; w.len() / d_in * (x.len() / d_in)];
    TiledMatMul.mul_mat(w, x, d_in, &mut y);
    y
}

/// Gap and cosine.
fn compare(exact: &[f32], approx: &[f32], x: &[f32], d_in: usize) -> (f64, f64) {
    let (a, b) = (product(exact, x, d_in), product(approx, x, d_in));
    let sum = |f: fn(f64, f64) -> f64| -> f64 {
        a.iter().zip(&b).map(|(&a, &b)| f(f64::from(a), f64::from(b))).sum()
    };
    let (aa, bb, ab) = (sum(|a, _| a * a), sum(|_, b| b * b), sum(|a, b| a * b));
    let error = sum(|a, b| (a - b) * (a - b));
    let cosine = if aa * bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 };
    (numerics::metrics::ratio(error, aa).sqrt(), cosine)
}

fn d_in(file: &GgufFile, tensor: MatrixId) -> Result<usize, Error> {
    Ok(file.require_tensor(&tensor.weight())?.dims()[0])
}

fn weights(file: &GgufFile, tensor: MatrixId) -> Result<Vec<f32>, Error> {
    Ok(file.to_f32(file.require_tensor(&tensor.weight())?)?)
}

/// What the sidecars of `tensor` stand for, and their bytes; `None` if it is not coded.
fn decoded(
    dense: &GgufFile,
    coded: &GgufFile,
    tensor: MatrixId,
) -> Result<Option<(Vec<f32>, usize)>, Error> {
    let unfit = |reason: String| Error::Unfit { path: coded.path().to_owned(), reason };
    match coded.scheme(tensor).as_deref() {
        None => return Ok(None),
        Some(format::seeddelta::SCHEME) => {}
        Some(other) => {
            return Err(unfit(format!(
                "{tensor} has the scheme {other}, not {}",
                format::seeddelta::SCHEME
            )));
        }
    }
    let dims = dense.require_tensor(&tensor.weight())?.dims();
    let shape = MatrixShape::new(dims[0], dims.get(1).copied().unwrap_or(1));
    let sidecars = coded.sidecars(tensor);
    let model =
        SeedDelta::from_sidecars(&sidecars, shape).map_err(|e| unfit(format!("{tensor}: {e}")))?;
    Ok(Some((model.to_dense(), sidecars.iter().map(|s| s.data.len()).sum())))
}
