//! The report as data.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggml::gguf::GgufFile;
use seeddelta_lab::auto::Auto;
use seeddelta_lab::bench::{Bench, RunResult};
use seeddelta_lab::measure::Outcome;
use serde::Serialize;

use crate::NAME;
use crate::cli::Cli;
use crate::findings::Findings;

/// `report.json`.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    /// Program and version.
    pub tool: String,
    /// llama.cpp's version.
    pub llama_cpp: &'static str,
    /// Arguments with their effective values.
    pub arguments: &'a Cli,
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

impl<'a> Record<'a> {
    /// Puts the report together.
    pub fn new(
        cli: &'a Cli,
        bench: &Bench,
        runs: Vec<RunResult>,
        auto: Option<Auto>,
    ) -> Result<Self> {
        let model = GgufFile::open(&cli.model)?;
        let mut inputs: Vec<PathBuf> = model.paths().map(Path::to_owned).collect();
        inputs.extend(cli.material.files());
        let hashed = inputs.into_iter().map(|path| Ok((path.clone(), sha256(&path)?)));
        Ok(Self {
            tool: format!("{NAME} {}", env!("CARGO_PKG_VERSION")),
            llama_cpp: ggml::LLAMA_CPP_VERSION,
            arguments: cli,
            sha256: hashed.collect::<Result<_>>()?,
            contexts: bench.contexts.clone(),
            baseline: bench.baseline.clone(),
            findings: Findings::of(&runs),
            runs,
            auto,
        })
    }
}

fn sha256(path: &Path) -> Result<String> {
    let hash = || builder::files::sha256(&mut File::open(path)?, |_| Ok(()));
    hash().with_context(|| path.display().to_string())
}
