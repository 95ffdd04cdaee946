//! Importance for requantized files: a file by llama-imatrix, or the mean squares that a calibration holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::MatrixId;
use ggml::Type;
use ggml::gguf::{Array, GgufFile, GgufWriter, Value, WriteError};
use ggml::imatrix::Imatrix;
use program::files::Unfinished;

use crate::options::Options;
use crate::variants::Extent;
use crate::{Error, inputs};

/// Which requantized files an importance helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helps {
    /// None.
    Nothing,
    /// Those that change FFN matrices alone: a calibration knows no others.
    Ffn,
    /// All.
    All,
}

impl Helps {
    /// Whether it helps files of `extent`.
    #[must_use]
    pub fn with(self, extent: Extent) -> bool {
        self == Self::All || self == Self::Ffn && extent == Extent::Ffn
    }
}

/// What there is of importance for the matrices `coded` of `base`, checked.
///
/// # Errors
/// For a file that is none or is of another model, and for mixtures that cannot be made without one.
pub(crate) fn check(
    options: &Options,
    base: &GgufFile,
    coded: &BTreeSet<MatrixId>,
) -> Result<Helps, Error> {
    if let Some(path) = &options.imatrix {
        let imatrix = Imatrix::open(path)?;
        for id in coded {
            let name = id.weight();
            let dims = base.require_tensor(&name)?.dims();
            imatrix.importance(&name, dims[0], dims.get(2).copied())?;
        }
        return Ok(Helps::All);
    }
    if let Some(path) = &options.calib {
        let calibration = Calibration::open(path)?;
        if coded.iter().all(|id| calibration.covers(id.input())) {
            return Ok(Helps::Ffn);
        }
    }
    match options.against.iter().find(|mix| mix.needs_imatrix()) {
        None => Ok(Helps::Nothing),
        Some(mix) => {
            let reason = format!(
                "llama-quantize makes {mix} with an importance matrix only: give one by llama-imatrix with --imatrix, or a \
                 calibration that holds activations with --calib"
            );
            Err(program::Error::Flag { flag: "--against", reason }.into())
        }
    }
}

/// The file for llama-quantize and its SHA-256: that of `--imatrix`, or one in `folder` made of the calibration.
///
/// # Errors
/// For a damaged calibration, or a file that cannot be written.
pub(crate) fn file(
    helps: Helps,
    options: &Options,
    coded: &BTreeSet<MatrixId>,
    folder: &Path,
) -> Result<Option<(PathBuf, String)>, Error> {
    let path = match (helps, &options.imatrix, &options.calib) {
        (Helps::All, Some(path), _) => path.clone(),
        (Helps::Ffn, _, Some(calib)) => {
            let path = folder.join("importance.gguf");
            write(&path, &Calibration::open(calib)?, coded)?;
            path
        }
        _ => return Ok(None),
    };
    let sha256 = inputs::sha256(&path)?;
    Ok(Some((path, sha256)))
}

/// Writes the mean squares of `calibration` as llama-imatrix would.
fn write(path: &Path, calibration: &Calibration, coded: &BTreeSet<MatrixId>) -> Result<(), Error> {
    let refuse = |cause: WriteError| Error::input(path, format!("cannot be written: {cause}"));
    let mut writer = GgufWriter::new();
    let mut values: Vec<Vec<f32>> = Vec::new();
    let provenance = calibration.provenance();
    let texts: Vec<String> = match provenance.texts.as_slice() {
        [] => vec!["its own text".to_owned()],
        texts => texts.iter().map(|text| text.name.clone()).collect(),
    };
    let n_fitted = provenance.n_fitted as f32;
    let lay_out = || -> Result<(), WriteError> {
        writer.set("general.type", "imatrix")?;
        writer.set("imatrix.datasets", Value::Array(Array::String(texts)))?;
        writer.set(
            "imatrix.chunk_count",
            (provenance.n_fitted / u64::from(provenance.n_ctx.max(1))) as u32,
        )?;
        writer.set("imatrix.chunk_size", provenance.n_ctx)
    };
    lay_out().map_err(refuse)?;
    for id in coded {
        let sums: Vec<f32> =
            calibration.input(id.input())?.mean_squares().iter().map(|v| v * n_fitted).collect();
        for (part, sums) in [("in_sum2", sums), ("counts", vec![n_fitted])] {
            let name = format!("{}.{part}", id.weight());
            writer.add_tensor(&name, Type::F32, &[sums.len(), 1]).map_err(refuse)?;
            values.push(sums);
        }
    }
    let mut unfinished = Unfinished::create(path)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let written = writer.write(unfinished.file(), |i, out| out.write_all(&bytes(&values[i])));
    written.map_err(refuse)?;
    Ok(unfinished.publish()?)
}
