//! The source model: opened once, checked for a layout that can be coded, watched for changes.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use format::{Branch, ExpertStack, Matrix, MatrixId, MatrixShape, ModelMap};
use ggml::Type;
use ggml::gguf::{GgufError, GgufFile, TensorInfo};
use ggml::quant_mix::{FfnMatrix, QuantMix};
use program::{Interrupt, Reporter, files};

use crate::{Error, unfit};

/// A source model.
#[derive(Debug)]
pub struct Source {
    file: GgufFile,
    architecture: String,
    map: ModelMap,
    n_layers: usize,
    mtp_layers: Range<usize>,
    /// As llama.cpp runs it, once that was asked for.
    model: OnceLock<llama::Model>,
}

impl Source {
    /// Opens `path` and checks that its FFN can be coded.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Inspect`] or [`Error::Model`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = open_gguf(path)?;
        let refuse = |reason| Error::Model { path: path.to_owned(), reason };
        check_kind(&file).map_err(refuse)?;
        let architecture = file.architecture()?;
        let map = map(&file, &architecture).map_err(refuse)?;
        let n_layers = n_layers(&file, &architecture, &map)?;
        let mtp_layers = inspect::mtp::layers(&file, &architecture)?;
        Ok(Self { file, architecture, map, n_layers, mtp_layers, model: OnceLock::new() })
    }

    /// The mapped file.
    #[must_use]
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The model as llama.cpp runs it, whose weights stay in the file until they are needed.
    ///
    /// # Errors
    /// As [`llama::Model::load`].
    pub fn model(&self) -> Result<&llama::Model, llama::LlamaError> {
        if self.model.get().is_none() {
            let params = llama::ModelParams { repack: false, ..llama::ModelParams::default() };
            let model = llama::Model::load(llama::Backend::init(), self.file.path(), &params)?;
            // Another thread may have been faster: its model does as well.
            drop(self.model.set(model));
        }
        Ok(self.model.get().expect("just set"))
    }

    /// Number of layers; not every layer need have FFN matrices.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// The layers for multi-token prediction, which text does not run through; none in most models.
    #[must_use]
    pub fn mtp_layers(&self) -> Range<usize> {
        self.mtp_layers.clone()
    }

    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The inputs of the model and the matrices that read them, those that may be coded.
    #[must_use]
    pub fn map(&self) -> &ModelMap {
        &self.map
    }

    /// The matrices that may be coded, sorted.
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> + '_ {
        self.map.matrices().map(|matrix| matrix.id)
    }

    /// The sites of `matrices` that text runs through, with nothing but those.
    #[must_use]
    pub fn run_through(&self, matrices: &[MatrixId]) -> ModelMap {
        self.map.restricted(|id| matrices.contains(&id) && !self.is_mtp(id))
    }

    /// The dense weight of `tensor`, which must be one of [`Self::matrices`].
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn info(&self, tensor: MatrixId) -> &TensorInfo {
        self.file.tensor(&tensor.weight()).expect("the map has weights of the file")
    }

    /// The weights of `tensor`, which must be one of [`Self::matrices`], [d_in, d_out]; of experts all rows. Their pages are
    /// given back.
    ///
    /// # Errors
    /// [`Error::Inspect`] if they cannot be read, [`Error::Codec`] with the position of one that is not finite.
    ///
    /// # Panics
    /// If it is not.
    pub fn weights(&self, tensor: MatrixId) -> Result<Vec<f32>, Error> {
        let info = self.info(tensor);
        let weights = self.file.to_f32(info)?;
        self.file.release(info);
        numerics::check_finite(&weights, self.shape(tensor))
            .map_err(|cause| Error::Codec { tensor: tensor.weight(), cause })?;
        Ok(weights)
    }

    /// `rows` of the weights of `tensor`, which must be one of [`Self::matrices`], one after the other.
    ///
    /// # Errors
    /// As [`Self::weights`], but nothing is checked.
    ///
    /// # Panics
    /// If it is not, or has no such rows.
    pub fn rows(&self, tensor: MatrixId, rows: &[usize]) -> Result<Vec<f32>, Error> {
        let info = self.info(tensor);
        let mut weights = Vec::new();
        for row in rows {
            weights.extend(self.file.rows_to_f32(info, *row..row + 1)?);
        }
        self.file.release(info);
        Ok(weights)
    }

    /// The matrix called `tensor`, which must be one of [`Self::matrices`].
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn matrix(&self, tensor: MatrixId) -> &Matrix {
        self.map.matrix(tensor).expect("a matrix of the model")
    }

    /// Shape of `tensor`, which must be one of [`Self::matrices`]; of experts that of all rows.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn shape(&self, tensor: MatrixId) -> MatrixShape {
        self.matrix(tensor).stacked()
    }

    /// Type that llama-quantize's Q5_K_M gives `tensor`, which must be one of [`Self::matrices`].
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn q5_k_m_type(&self, tensor: MatrixId) -> Type {
        QuantMix::Q5_K_M.ffn_type(&FfnMatrix {
            role: tensor.role,
            layer: tensor.layer,
            n_layer: self.n_layers,
            shape: self.shape(tensor),
            architecture: &self.architecture,
            has_imatrix: false,
        })
    }

    /// Size of the model's file, or all of its parts, in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.file.n_bytes() as u64
    }

    /// SHA-256 of what the paths of the model's file and parts lead to now, one after the other.
    ///
    /// # Errors
    /// [`Error::Program`], or [`Error::Stopped`].
    pub fn sha256(&self, reporter: &Reporter, interrupt: &Interrupt) -> Result<String, Error> {
        let stage = reporter.bytes("reading the input", self.n_bytes());
        let hash = files::sha256_of_files(self.file.paths(), |n| {
            stage.advance(n);
            interrupt.check()
        });
        if interrupt.is_set() { Err(Error::Stopped) } else { Ok(hash?) }
    }

    /// Checks that the paths still lead to the bytes of which `sha256` is the hash.
    ///
    /// # Errors
    /// [`Error::SourceChanged`], or as [`Self::sha256`].
    pub fn check_unchanged(
        &self,
        sha256: &str,
        reporter: &Reporter,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        if self.sha256(reporter, interrupt)? == sha256 {
            return Ok(());
        }
        Err(Error::changed(self.file.path()))
    }
}

/// Opens a GGUF; an error says that the file should be another one.
fn open_gguf(path: &Path) -> Result<GgufFile, Error> {
    GgufFile::open(path).map_err(|error| match error {
        GgufError::Malformed { path, reason } => {
            Error::Model { path, reason: format!("{reason}: give a complete GGUF file") }
        }
        other => other.into(),
    })
}

/// Refuses files that are no complete, plain, dense model; the error says which and the way out.
fn check_kind(file: &GgufFile) -> Result<(), String> {
    let architecture = file.architecture().map_err(|_| {
        "has no general.architecture: it is not a language model, give one".to_owned()
    })?;
    if architecture.contains(char::is_control) {
        return Err("has a general.architecture that is no name: the file is damaged".to_owned());
    }
    if let Some(reason) = unfit::projector(file, &architecture) {
        return Err(reason);
    }
    if let Ok(Some(kind)) = file.string("general.type")
        && kind != "model"
    {
        return Err(format!(
            "is of type '{kind}', not a model (general.type): give the model itself"
        ));
    }
    if let Some(name) = coded_tensor(file) {
        return Err(format!(
            "holds coded tensors already ({name}): give the original model; a build adds layers to \
             this file as its output, with --resume"
        ));
    }
    format::check_architecture(&architecture).map_err(|e| e.to_string())?;
    match file.tensors().iter().find(|tensor| is_single_expert(tensor.name())) {
        Some(tensor) => Err(format!(
            "has a tensor for every expert ({}), as old files do: convert the model anew, so that the experts of a layer \
             are in one",
            tensor.name()
        )),
        None => Ok(()),
    }
}

/// `ffn_up.3.weight` of old files.
fn is_single_expert(name: &str) -> bool {
    MatrixId::parse(name)
        .is_some_and(|(_, suffix)| suffix.starts_with(|c: char| c.is_ascii_digit()))
}

/// A coded tensor, or a sidecar that no scheme belongs to: it would get the name of one that is to be written.
fn coded_tensor(file: &GgufFile) -> Option<String> {
    let suffixes = format::sidecar_suffixes();
    let sidecar =
        |name: &str| MatrixId::parse(name).is_some_and(|(_, suffix)| suffixes.contains(&suffix));
    let stray = || file.tensors().iter().map(|t| t.name()).find(|n| sidecar(n)).map(str::to_owned);
    file.coded_tensors().into_iter().next().or_else(stray)
}

/// The dense weights that may be coded; the error names the tensor that does not fit.
fn map(file: &GgufFile, architecture: &str) -> Result<ModelMap, String> {
    let is_weight = |info: &&TensorInfo| MatrixId::of_weight(info.name()).is_some();
    file.tensors().iter().filter(is_weight).try_for_each(check_weight)?;
    let map = ModelMap::of(file.tensors().iter().map(|info| (info.name(), info.dims())));
    let key = format!("{architecture}.expert_count");
    let stated = file.value(&key).and_then(|value| value.as_u64()).unwrap_or(0);
    if stated > 0 && !map.matrices().any(|matrix| matrix.n_experts.is_some()) {
        return Err(format!(
            "is a mixture of experts ({key} = {stated}) without any: give a complete model"
        ));
    }
    if map.sites().is_empty() {
        return Err(unfit::without_ffn(file, architecture));
    }
    match map.missing() {
        Some(needed) => Err(format!("has no tensor {}: its layout is unknown", needed.weight())),
        None => Ok(map),
    }
}

fn check_weight(info: &TensorInfo) -> Result<(), String> {
    let name = info.name();
    let matrix = MatrixId::of_weight(name).and_then(|id| Matrix::of_dims(id, info.dims()));
    let has_experts = |matrix: &Matrix| matrix.id.role.branch() == Branch::Experts;
    let matrix = matrix.filter(|m| has_experts(m) == m.n_experts.is_some()).ok_or_else(|| {
        let dims = info.dims();
        format!("{name} has the dimensions {dims:?}: only matrices can be coded, those of experts in one tensor of three")
    })?;
    if info.dims().contains(&0) {
        return Err(format!("{name} is empty ({})", matrix.shape));
    }
    if let Some(n_experts) = matrix.n_experts {
        let stack = ExpertStack { each: matrix.shape, n_experts };
        stack.check().map_err(|reason| format!("{name}: {reason}"))?;
    }
    if !info.ty().has_to_float() {
        return Err(format!("{name} is of type {}, which holds no weights", info.ty()));
    }
    Ok(())
}

/// What the metadata says, at least as many as there are FFN layers.
fn n_layers(file: &GgufFile, architecture: &str, map: &ModelMap) -> Result<usize, Error> {
    let key = format!("{architecture}.block_count");
    let stated = file.u32(&key)?.unwrap_or(0) as usize;
    let found = map.sites().iter().map(|site| site.input.layer + 1).max().unwrap_or(0);
    Ok(stated.max(found))
}
