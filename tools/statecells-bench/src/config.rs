//! What is measured: flags that fit together.

use std::path::PathBuf;

use clap::CommandFactory;
use clap::error::ErrorKind;
use dictionary::GlobalParams;
use format::{CodecError, MatrixShape, Scheme, SidecarSpec};
use ggml::Type;
use sections::SectionsParams;

use crate::cli::Cli;
use crate::machine;

/// How much larger than the last-level cache the copies of a matrix are together, at least.
const CACHE_FACTOR: usize = 4;

/// A checked order.
#[derive(Debug)]
pub struct Config {
    /// Shape of the matrix.
    pub shape: MatrixShape,
    /// Columns multiplied at once, one measurement each.
    pub batches: Vec<usize>,
    /// Threads.
    pub n_threads: usize,
    /// Our matrix.
    pub coded: Coded,
    /// Types of ggml, each once.
    pub against: Vec<Type>,
    /// Bytes that the copies of a matrix fill at least.
    pub cold_bytes: usize,
    /// Passes of every contender.
    pub rounds: usize,
    /// Where the results go besides stdout.
    pub json: Option<PathBuf>,
}

/// How our matrix is coded: the codec's parameters, of which only those that decide on sizes count.
#[derive(Debug)]
pub enum Coded {
    /// Scheme `sections`.
    Sections(SectionsParams),
    /// A scheme with one dictionary over the whole input.
    Global(GlobalParams),
}

/// Sections of the default `--bpw`.
const DEFAULT_SECTIONS: usize = 6;

impl Coded {
    fn from_cli(cli: &Cli) -> Result<Self, clap::Error> {
        let stray = match cli.scheme {
            Scheme::Sections => {
                [("--dict-M", cli.dict_m.is_some()), ("--dict-k", cli.dict_k.is_some())]
            }
            _ => [("--bpw", cli.sections.is_some()), ("--outliers", cli.outliers.is_some())],
        };
        if let Some((flag, _)) = stray.iter().find(|(_, given)| *given) {
            return Err(usage(&format!("{flag} has no meaning for --scheme {}", cli.scheme)));
        }
        Ok(match cli.scheme {
            Scheme::Sections => Self::Sections(SectionsParams {
                sections: cli.sections.unwrap_or(DEFAULT_SECTIONS),
                outlier_share: cli.outliers.unwrap_or(0.0),
                ..SectionsParams::default()
            }),
            scheme => {
                let default = GlobalParams::default();
                let k = cli.dict_k.unwrap_or(default.k);
                Self::Global(GlobalParams { scheme, m: cli.dict_m, k, ..default })
            }
        })
    }

    /// The scheme, as in files.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Sections(_) => Scheme::Sections.as_str(),
            Self::Global(params) => params.scheme.as_str(),
        }
    }

    /// The tensors of a matrix of `shape`.
    pub fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        match self {
            Self::Sections(params) => params.sidecars(shape),
            Self::Global(params) => params.sidecars(shape),
        }
    }

    /// The flags that make this matrix, and their values.
    pub fn arguments(&self, shape: MatrixShape) -> [(&'static str, f64); 2] {
        match self {
            Self::Sections(p) => [("bpw", p.sections as f64 / 2.0), ("outliers", p.outlier_share)],
            Self::Global(p) => [("dict_M", p.n_atoms(shape) as f64), ("dict_k", p.k as f64)],
        }
    }
}

impl Config {
    /// The order that the flags give.
    ///
    /// # Errors
    /// A usage error if flags contradict each other.
    pub fn from_cli(cli: Cli) -> Result<Self, clap::Error> {
        let size = |n: Option<u32>| n.map_or(0, |n| n as usize);
        let shape = MatrixShape::new(size(cli.cols), size(cli.rows));
        let coded = Coded::from_cli(&cli)?;
        coded.sidecars(shape).map_err(|e| usage(&e.to_string()))?;
        let mut against: Vec<Type> = Vec::new();
        for ty in cli.against {
            if ty.row_bytes(shape.d_in).is_none() {
                return Err(usage(&format!(
                    "--cols {} is no multiple of the {} values in a block of {ty} (--against)",
                    shape.d_in,
                    ty.block_size()
                )));
            }
            if !against.contains(&ty) {
                against.push(ty);
            }
        }
        let cold_bytes = cli.cold_mib.map_or(CACHE_FACTOR * machine::last_level_cache_bytes(), mib);
        Ok(Self {
            shape,
            batches: cli.batch.iter().map(|&n| n as usize).collect(),
            n_threads: usize::from(cli.threads),
            coded,
            against,
            cold_bytes,
            rounds: cli.rounds as usize,
            json: cli.json,
        })
    }

    /// Copies of a matrix of `n_bytes`.
    pub fn n_copies(&self, n_bytes: usize) -> usize {
        self.cold_bytes.div_ceil(n_bytes.max(1)).max(1)
    }
}

fn mib(n: u32) -> usize {
    n as usize * (1 << 20)
}

fn usage(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}
