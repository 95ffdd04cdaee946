//! The report as data.

use std::fs::File;
use std::path::{Path, PathBuf};

use ggml::gguf::GgufFile;
use serde::Serialize;

use super::Error;
use super::auto::Auto;
use super::bench::{Bench, RunResult};
use super::findings::Findings;
use super::measure::Outcome;

/// `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Program and version.
    pub tool: String,
    /// llama.cpp's version.
    pub llama_cpp: &'static str,
    /// Arguments with their effective values.
    pub arguments: serde_json::Value,
    /// The dense model.
    #[serde(skip)]
    pub model: PathBuf,
    /// SHA-256 of every input, of every file that the model is in.
    pub sha256: Vec<(PathBuf, String)>,
    /// Unit and values of the context lengths.
    pub contexts: (&'static str, Vec<usize>),
    /// B1, one per context length.
    pub baseline: Vec<Outcome>,
    /// All runs but B1 and B5.
    pub runs: Vec<RunResult>,
    /// B5.
    pub auto: Option<Auto>,
    /// What they say together.
    pub findings: Findings,
}

impl Report {
    /// Puts the report of `tool` (name and version) together; `material` are the files beside the model.
    ///
    /// # Errors
    /// [`Error`] if the model or one of the files cannot be read.
    pub fn new(
        (tool, arguments): (String, serde_json::Value),
        model: &Path,
        material: Vec<PathBuf>,
        bench: &Bench,
        (runs, auto): (Vec<RunResult>, Option<Auto>),
    ) -> Result<Self, Error> {
        let mut inputs: Vec<PathBuf> = GgufFile::open(model)?.paths().map(Path::to_owned).collect();
        inputs.extend(material);
        let hashed = inputs.into_iter().map(|path| Ok((path.clone(), sha256(&path)?)));
        Ok(Self {
            tool,
            llama_cpp: ggml::LLAMA_CPP_VERSION,
            arguments,
            model: model.to_owned(),
            sha256: hashed.collect::<Result<_, Error>>()?,
            contexts: bench.contexts.clone(),
            baseline: bench.baseline.clone(),
            findings: Findings::of(&runs),
            runs,
            auto,
        })
    }
}

fn sha256(path: &Path) -> Result<String, Error> {
    let hash = || program::files::sha256(&mut File::open(path)?, |_| Ok(()));
    hash().map_err(|cause| Error::Io { path: path.to_owned(), cause })
}
