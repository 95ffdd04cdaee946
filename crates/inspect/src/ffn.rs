//! The FFN matrices of a file, dense or coded.

use std::collections::BTreeMap;

use format::coo::Layout;
use format::seeddelta::{BASE_BLOCK, BASE_CIRC, BASE_DIAG, BASE_SCALE, BASE_U, BASE_V, ROW_SCALE};
use format::{Matrix, MatrixId, MatrixShape, ModelMap, Width, keys};
use ggml::gguf::{Array, GgufFile, TensorInfo, Value};
use ggml::quant_mix::{FfnMatrix, QuantMix};
use program::table::bits_per_weight;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Settings;
use crate::hparams::per_layer;

/// The tensor that tells how many entries a delta has.
const DELTA_IDX: &str = Layout::PerRow.idx_suffix();

/// Last parts of names that belong to a dense weight; all others are sidecars.
const DENSE_PARTS: [&str; 4] = ["weight", "bias", "scale", "input_scale"];

/// One FFN matrix of a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FfnReport {
    /// `blk.<layer>.ffn_<role>`.
    pub name: String,
    /// Layer, from 0.
    pub layer: usize,
    /// `gate`, `up`, `down`, or the same of experts (`gate_exps`) or of a shared expert (`gate_shexp`).
    #[serde(rename = "target")]
    pub role: String,
    /// Scheme, as `statecells.<tensor>.scheme` names it; `null` if the matrix is dense only.
    pub scheme: Option<String>,
    /// Type of the dense weight, by ggml's name; `null` if there is none.
    pub dense_type: Option<String>,
    /// Number of inputs, the length of a row; `null` if neither dimensions nor metadata tell.
    pub d_in: Option<usize>,
    /// Number of outputs, the number of rows; `null` as for `d_in`.
    pub d_out: Option<usize>,
    /// Number of experts that have such a matrix each; `null` for one matrix.
    #[serde(default)]
    pub n_experts: Option<usize>,
    /// Parameters of the scheme that dimensions tell of: `M` and `k`, or `S`, or the parts of a base and `K`.
    pub settings: Settings,
    /// Bits per weight of everything that the file holds for it; `null` without a shape.
    pub bits_per_weight: Option<f64>,
    /// Gap that its builder recorded.
    pub gap: Option<f32>,
    /// Bytes of everything that the file holds for it.
    pub bytes: u64,
    /// Bytes of its sidecars.
    pub bytes_sidecars: u64,
    /// Type that Q5_K_M would give it, by ggml's name; `null` without a shape.
    pub q5_k_m_type: Option<String>,
    /// Bytes that Q5_K_M would need for it; 0 without a shape.
    pub bytes_q5_k_m: u64,
}

impl FfnReport {
    /// Which matrix it is.
    ///
    /// # Panics
    /// If `role` is none, which only happens to values made by hand.
    #[must_use]
    pub fn tensor(&self) -> MatrixId {
        let role = self.role.parse().expect("made from a role");
        MatrixId { layer: self.layer, role }
    }

    /// Number of weights; 0 without a shape.
    #[must_use]
    pub fn n_weights(&self) -> u64 {
        self.shape().map_or(0, |s| s.n_weights() as u64)
    }

    /// The matrix, or those of all experts, where the shape is known.
    #[must_use]
    pub fn matrix(&self) -> Option<Matrix> {
        let shape = MatrixShape::new(self.d_in?, self.d_out?);
        Some(Matrix { id: self.tensor(), shape, n_experts: self.n_experts })
    }

    /// Shape, where it is known; of experts that of all rows.
    #[must_use]
    pub fn shape(&self) -> Option<MatrixShape> {
        self.matrix().map(|matrix| matrix.stacked())
    }
}

/// All FFN matrices of `file` that have a dense weight or are coded, by layer and role.
pub(super) fn all(file: &GgufFile, architecture: Option<&str>) -> Vec<FfnReport> {
    let mut parts = ModelMap::parts(file.tensors().iter().map(|info| (info.name(), info)));
    let mut schemes = file.schemes();
    for tensor in schemes.keys() {
        parts.entry(*tensor).or_default();
    }
    parts.retain(|tensor, parts| parts.contains_key("weight") || schemes.contains_key(tensor));
    let n_layer = parts.keys().map(|t| t.layer + 1).max().unwrap_or(0);
    let hparams = Hparams { file, architecture, n_layer };
    let report = |(tensor, parts): (&MatrixId, &BTreeMap<&str, &TensorInfo>)| {
        report(&hparams, *tensor, schemes.remove(tensor), parts)
    };
    parts.iter().map(report).collect()
}

/// What the metadata says about the model.
struct Hparams<'a> {
    file: &'a GgufFile,
    architecture: Option<&'a str>,
    n_layer: usize,
}

impl Hparams<'_> {
    /// The number `<architecture>.<key>`, or its entry for `layer` where it is an array.
    fn number(&self, key: &str, layer: usize) -> Option<usize> {
        per_layer(self.file, self.architecture?, key, layer)?.try_into().ok()
    }

    fn n_layer(&self) -> usize {
        self.number("block_count", 0).unwrap_or(0).max(self.n_layer)
    }
}

fn report(
    hparams: &Hparams<'_>,
    tensor: MatrixId,
    scheme: Option<String>,
    parts: &BTreeMap<&str, &TensorInfo>,
) -> FfnReport {
    let is_sidecar = |part: &str| !DENSE_PARTS.contains(&part);
    let dense = parts.get("weight").copied();
    let sidecars: u64 =
        parts.iter().filter(|(p, _)| is_sidecar(p)).map(|(_, i)| i.n_bytes() as u64).sum();
    let bytes = sidecars + dense.map_or(0, |d| d.n_bytes() as u64);
    let matrix = matrix(hparams, tensor, parts).filter(|m| n_weights(m) > Some(0));
    let shape = matrix.map(|m| m.stacked());
    let q5_k_m = shape.map(|shape| FfnMatrix {
        role: tensor.role,
        layer: tensor.layer,
        n_layer: hparams.n_layer(),
        shape,
        architecture: hparams.architecture.unwrap_or(""),
        has_imatrix: false,
    });
    FfnReport {
        name: tensor.stem(),
        layer: tensor.layer,
        role: tensor.role.to_string(),
        scheme,
        dense_type: dense.map(|d| d.ty().to_string()),
        d_in: matrix.map(|m| m.shape.d_in),
        d_out: matrix.map(|m| m.shape.d_out),
        n_experts: matrix.and_then(|m| m.n_experts),
        settings: settings(parts),
        bits_per_weight: shape.map(|s| bits_per_weight(bytes, s.n_weights() as u64)),
        gap: hparams.file.f32(&keys::tensor_gap(tensor)).ok().flatten(),
        bytes,
        bytes_sidecars: sidecars,
        q5_k_m_type: q5_k_m.map(|m| QuantMix::Q5_K_M.ffn_type(&m).to_string()),
        bytes_q5_k_m: q5_k_m.and_then(|m| QuantMix::Q5_K_M.ffn_bytes(&m)).unwrap_or(0) as u64,
    }
}

/// Number of weights, if it is one.
fn n_weights(matrix: &Matrix) -> Option<usize> {
    matrix.shape.checked_n_weights()?.checked_mul(matrix.n_experts.unwrap_or(1))
}

/// The matrix, its shape from the dense weight, else from its own key; in files of earlier versions from a global dictionary
/// and its codes or, where the sidecars are padded, from the model's metadata.
fn matrix(
    hparams: &Hparams<'_>,
    tensor: MatrixId,
    parts: &BTreeMap<&str, &TensorInfo>,
) -> Option<Matrix> {
    let plain = |shape| Matrix { id: tensor, shape, n_experts: None };
    if let Some(dense) = parts.get("weight") {
        return Matrix::of_dims(tensor, dense.dims());
    }
    if let Some(Value::Array(Array::U32(dims))) = hparams.file.value(&keys::tensor_shape(tensor)) {
        let dims: Vec<usize> = dims.into_iter().map(|d| d as usize).collect();
        return Matrix::of_dims(tensor, &dims);
    }
    if let Some((d_in, _, _, d_out)) = global_dims(parts) {
        return Some(plain(MatrixShape::new(d_in, d_out)));
    }
    let number = |width: Width| match width {
        Width::Embedding => hparams.number("embedding_length", tensor.layer),
        _ => hparams.number("feed_forward_length", tensor.layer),
    };
    let (d_in, d_out) = (number(tensor.role.d_in()), number(tensor.role.d_out()));
    let rows = parts.get(ROW_SCALE).map(|r| r.n_elements());
    // GGUF drops a last dimension of 1.
    let columns = |part: &str| parts.get(part)?.matrix_shape().map(|s| s.d_out);
    let rows = rows.or_else(|| columns(DELTA_IDX).or_else(|| columns(BASE_U)));
    let d_in = parts.get(BASE_V).and_then(|v| v.dims().first().copied()).or(d_in);
    Some(plain(MatrixShape::new(d_in?, rows.or(d_out)?)))
}

/// `d_in`, M, k and `d_out` of a global dictionary.
fn global_dims(parts: &BTreeMap<&str, &TensorInfo>) -> Option<(usize, usize, usize, usize)> {
    let (dict, codes) = (parts.get("dict")?, parts.get("codes")?);
    if codes.ty() != ggml::Type::I16 {
        return None;
    }
    let (dict, codes) = (dict.matrix_shape()?, codes.matrix_shape()?);
    Some((dict.d_in, dict.d_out, codes.d_in, codes.d_out))
}

fn settings(parts: &BTreeMap<&str, &TensorInfo>) -> Settings {
    let named = |name: &str, value: usize| (name.to_owned(), value as u64);
    if let Some((_, m, k, _)) = global_dims(parts) {
        return [named("M", m), named("k", k)].into();
    }
    match parts.get("dict").map(|d| d.dims()) {
        Some(&[_, _, sections]) => [named("S", sections)].into(),
        // A single section: ggml drops the trailing dimension.
        Some(&[8, 16]) => [named("S", 1)].into(),
        _ => base_and_delta(parts),
    }
}

/// The parts of a SeedDelta base with their sizes (1 where they have none), and `K`, as its builder reports them.
fn base_and_delta(parts: &BTreeMap<&str, &TensorInfo>) -> Settings {
    let dim = |part: &str, n: usize| Some(parts.get(part)?.dims().get(n).copied().unwrap_or(1));
    let is_there = |part: &str| parts.contains_key(part).then_some(1);
    let found = [
        ("identity", is_there(BASE_SCALE)),
        ("diagonal", is_there(BASE_DIAG)),
        ("lowrank", dim(BASE_V, 1)),
        ("circulant", is_there(BASE_CIRC)),
        ("block", dim(BASE_BLOCK, 0)),
    ];
    let mut settings: Settings =
        found.into_iter().filter_map(|(name, n)| Some((name.to_owned(), n? as u64))).collect();
    if let Some(k) = dim(DELTA_IDX, 0).or((!settings.is_empty()).then_some(0)) {
        settings.insert("K".to_owned(), k as u64);
    }
    settings
}
