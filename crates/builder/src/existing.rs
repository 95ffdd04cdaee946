//! An output of an earlier run, from which finished tensors are taken (`--resume`).

use std::path::Path;

use format::{MatrixId, Sidecar, SidecarSpec, keys};
use ggml::Type;
use ggml::gguf::GgufFile;

use crate::record::TensorRecord;
use crate::work::sidecars_sha256;
use crate::{Error, Record};

/// A complete coded file with its record. It stays mapped while its successor takes its name.
#[derive(Debug)]
pub struct ExistingOutput {
    file: GgufFile,
    record: Record,
}

impl ExistingOutput {
    /// Opens `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Inspect`], or [`Error::Resume`] if the file holds no record of a build.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let file = GgufFile::open_whole(path)?;
        let refuse = |reason: String| Error::Resume { path: path.to_owned(), reason };
        let record = file.string(keys::RECORD)?.ok_or_else(|| {
            refuse(
                "was not made by this program: choose another -o, or replace it with --force"
                    .into(),
            )
        })?;
        let record = serde_json::from_str(&record).map_err(|e| {
            refuse(format!("has an unreadable {} ({e}): replace it with --force", keys::RECORD))
        })?;
        Ok(Some(Self { file, record }))
    }

    /// How the file was made.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// All tensors that the file's build finished.
    pub fn tensors(&self) -> impl Iterator<Item = MatrixId> + '_ {
        self.record.tensors.keys().filter_map(|stem| MatrixId::of_stem(stem))
    }

    /// The gap of a tensor that stays dense because of it.
    #[must_use]
    pub fn dense_gap(&self, tensor: MatrixId) -> Option<f32> {
        match self.record.tensors.get(&tensor.stem()) {
            Some(TensorRecord::Dense(gap)) => Some(*gap),
            _ => None,
        }
    }

    /// The gap that is recorded of a coded tensor.
    #[must_use]
    pub fn gap(&self, tensor: MatrixId) -> Option<f32> {
        self.file.f32(&keys::tensor_gap(tensor)).ok().flatten().filter(|gap| !gap.is_nan())
    }

    /// The scheme of a coded tensor.
    #[must_use]
    pub fn scheme(&self, tensor: MatrixId) -> Option<String> {
        self.file.scheme(tensor)
    }

    /// The sidecars of a coded tensor, if they are `specs` and as they were written.
    #[must_use]
    pub fn sidecars(&self, tensor: MatrixId, specs: &[SidecarSpec]) -> Option<Vec<Sidecar>> {
        let Some(TensorRecord::Coded(sha256)) = self.record.tensors.get(&tensor.stem()) else {
            return None;
        };
        let data = specs.iter().map(|spec| self.data(tensor, spec)).collect::<Option<Vec<_>>>()?;
        if sidecars_sha256(data.iter().copied()) != *sha256 {
            return None;
        }
        let sidecar = |(spec, data): (&SidecarSpec, &[u8])| Sidecar {
            spec: spec.clone(),
            data: data.to_vec(),
        };
        Some(specs.iter().zip(data).map(sidecar).collect())
    }

    /// The data of one sidecar, if type and dimensions are those of `spec`.
    fn data(&self, tensor: MatrixId, spec: &SidecarSpec) -> Option<&[u8]> {
        let info = self.file.tensor(&tensor.with_suffix(spec.suffix))?;
        let fits = info.ty() == Type::from(spec.element_type)
            && Some(info.n_bytes()) == spec.n_bytes()
            && info.n_elements() == spec.n_elements()?;
        fits.then(|| self.file.data(info))
    }
}
