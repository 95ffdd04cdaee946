//! What a GGUF holds and needs, coded or not: sizes by tensor, totals, record, memory at run time.

pub mod comparison;
mod error;
mod ffn;
mod hparams;
mod making;
mod memory;
pub mod mtp;
mod settings;
pub mod text;

use std::path::Path;

use format::{MatrixId, keys};
use ggml::gguf::GgufFile;
use program::Selection;
use program::table::{bits_per_weight, saved};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use error::Error;
pub use ffn::FfnReport;
pub use making::Making;
pub use memory::{KvCache, KvTypes, Memory};
pub use settings::{Settings, settings_text};

/// Version of [`Inspection`]; it grows when a field changes its meaning or goes away.
pub const INSPECTION_VERSION: u32 = 1;

/// What is known about a GGUF file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Inspection {
    /// Version of this schema.
    pub schema_version: u32,
    /// Path as given.
    pub path: String,
    /// Size of the file, or of all its parts, in bytes.
    pub file_bytes: u64,
    /// Files that it is in, one after the other; 1 for a whole one.
    #[serde(default = "one")]
    pub n_parts: usize,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// Layers, `<architecture>.block_count`.
    pub n_layers: usize,
    /// The last ones of them that are for multi-token prediction, `<architecture>.nextn_predict_layers`: no text runs
    /// through them.
    #[serde(default)]
    pub n_mtp_layers: usize,
    /// What coded files say about themselves; `null` for plain ones.
    pub coding: Option<Coding>,
    /// FFN matrices by layer and role, those selected.
    pub tensors: Vec<FfnReport>,
    /// Sums.
    pub totals: InspectionTotals,
    /// Memory at run time; `null` if the metadata does not describe attention.
    pub memory: Option<Memory>,
}

/// Metadata of a coded file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Coding {
    /// Scheme that was asked for; single tensors may differ.
    pub scheme: Option<String>,
    /// Version of the tensor format.
    pub format_version: Option<u32>,
    /// `--gap-tol` of the build; `null` if there was no limit.
    pub default_gap_tol: Option<f32>,
    /// 10^9 bytes saved against the source's own tensors.
    pub mem_saved_gb: Option<f32>,
    /// How the file was made, as its builder wrote it.
    pub record: Option<serde_json::Value>,
}

/// Sums over a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InspectionTotals {
    /// Selected FFN matrices that are coded, with or without their dense weight.
    pub n_coded: usize,
    /// Selected FFN matrices that are dense only.
    pub n_dense: usize,
    /// Weights of the selected FFN matrices.
    pub ffn_weights: u64,
    /// Bytes of the selected FFN matrices: sidecars and dense weights.
    pub ffn_bytes: u64,
    /// Bits per weight over these.
    pub ffn_bits_per_weight: f64,
    /// Bytes that Q5_K_M would need for these.
    pub ffn_bytes_q5_k_m: u64,
    /// Share of Q5_K_M's bytes that is saved; negative if there are more.
    pub saved_of_q5_k_m: f64,
    /// Bytes of all other tensors of the file, FFN matrices that are not selected included.
    pub other_bytes: u64,
    /// Bytes of all tensors of the file.
    pub tensor_bytes: u64,
}

impl Inspection {
    /// Looks at the file at `path`: the FFN matrices in `selection`, and memory for a context of `n_ctx`
    /// tokens (`None`: the longest that the model is made for).
    ///
    /// # Errors
    /// [`Error::Gguf`] for a file that is no GGUF; [`Error::Program`] for one that cannot be read, or for a selection
    /// that the model does not have; [`Error::KvType`] for cache types that do not fit.
    pub fn new(
        path: &Path,
        selection: &Selection,
        n_ctx: Option<u64>,
        types: KvTypes,
    ) -> Result<Self, Error> {
        let file = GgufFile::open(path)?;
        let architecture = file.string("general.architecture")?;
        let all = ffn::all(&file, architecture.as_deref());
        let n_layers = n_layers(&file, architecture.as_deref(), &all);
        let mtp_layers = architecture.as_deref().and_then(|arch| mtp::layers(&file, arch).ok());
        let n_mtp_layers = mtp_layers.map_or(0, |layers| layers.len());
        let tensors = select(all, selection, n_layers)?;
        let totals = totals(&file, &tensors);
        let memory = match &architecture {
            Some(arch) => {
                let n_run = n_run_layers(n_layers, n_mtp_layers);
                Memory::new(&file, arch, n_run, totals.tensor_bytes, n_ctx, types)?
            }
            None => None,
        };
        Ok(Self {
            schema_version: INSPECTION_VERSION,
            path: path.display().to_string(),
            file_bytes: file.n_bytes() as u64,
            n_parts: file.paths().len(),
            name: file.string("general.name").ok().flatten(),
            n_layers,
            n_mtp_layers,
            coding: coding(&file),
            tensors,
            totals,
            memory,
            architecture,
        })
    }
}

impl Inspection {
    /// Layers that text runs through, the first ones: those for multi-token prediction are only in the file. Where there
    /// are no others, as in a draft model, they are run.
    #[must_use]
    pub fn n_run_layers(&self) -> usize {
        n_run_layers(self.n_layers, self.n_mtp_layers)
    }
}

fn n_run_layers(n_layers: usize, n_mtp_layers: usize) -> usize {
    if n_mtp_layers < n_layers { n_layers - n_mtp_layers } else { n_layers }
}

/// What was written before models in parts could be read has one.
fn one() -> usize {
    1
}

/// `<architecture>.block_count`, or as many as the FFN matrices tell of.
fn n_layers(file: &GgufFile, architecture: Option<&str>, tensors: &[FfnReport]) -> usize {
    let stated = architecture.and_then(|arch| file.value(&format!("{arch}.block_count"))?.as_u64());
    let found = tensors.iter().map(|t| t.layer + 1).max().unwrap_or(0);
    stated.and_then(|n| usize::try_from(n).ok()).unwrap_or(0).max(found)
}

fn select(
    all: Vec<FfnReport>,
    selection: &Selection,
    n_layers: usize,
) -> Result<Vec<FfnReport>, Error> {
    if selection.layers.is_none() && selection.roles.is_none() {
        return Ok(all);
    }
    let available: Vec<MatrixId> = all.iter().map(FfnReport::tensor).collect();
    let wanted = selection.resolve(&available, n_layers)?;
    Ok(all.into_iter().filter(|t| wanted.contains(&t.tensor())).collect())
}

fn totals(file: &GgufFile, tensors: &[FfnReport]) -> InspectionTotals {
    let sum = |of: fn(&FfnReport) -> u64| tensors.iter().map(of).sum::<u64>();
    let (ffn_bytes, ffn_weights) = (sum(|t| t.bytes), sum(|t| t.n_weights()));
    let ffn_bytes_q5_k_m = sum(|t| t.bytes_q5_k_m);
    let tensor_bytes = file.tensors().iter().map(|t| t.n_bytes() as u64).sum();
    let n_coded = tensors.iter().filter(|t| t.scheme.is_some()).count();
    let or_zero = |value: f64| if tensors.is_empty() { 0.0 } else { value };
    InspectionTotals {
        n_coded,
        n_dense: tensors.len() - n_coded,
        ffn_weights,
        ffn_bytes,
        ffn_bits_per_weight: or_zero(bits_per_weight(ffn_bytes, ffn_weights)),
        ffn_bytes_q5_k_m,
        saved_of_q5_k_m: or_zero(saved(ffn_bytes, ffn_bytes_q5_k_m)),
        other_bytes: tensor_bytes - ffn_bytes,
        tensor_bytes,
    }
}

/// What the metadata says about coding; nothing in it is trusted to be of the right type.
fn coding(file: &GgufFile) -> Option<Coding> {
    if file.coded_tensors().is_empty() {
        // A build that left everything dense says so.
        file.value(keys::ENABLED)?;
    }
    let record = file.string(keys::RECORD).ok().flatten();
    Some(Coding {
        scheme: file.string(keys::SCHEME).ok().flatten(),
        format_version: file.u32(keys::VERSION).ok().flatten(),
        default_gap_tol: file.f32(keys::DEFAULT_GAP_TOL).ok().flatten().filter(|t| t.is_finite()),
        mem_saved_gb: file.f32(keys::MEM_SAVED_GB).ok().flatten(),
        record: record.map(|text| serde_json::from_str(&text).unwrap_or(text.into())),
    })
}

/// The JSON schema of [`Inspection`], as committed in `docs/schema/`.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(Inspection);
    serde_json::to_string_pretty(&schema).expect("a schema is plain data") + "\n"
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        program::check_schema("inspection.schema.json", &super::schema(), "inspect");
    }
}
