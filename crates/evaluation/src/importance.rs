//! Importance for requantized files: a file by llama-imatrix, or the mean squares that a calibration holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use calibration::Calibration;
use format::{Branch, MatrixId};
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
        let covers = |id: &MatrixId| match id.role.branch() {
            Branch::Experts => calibration.covers_experts(id.input()),
            _ => calibration.covers(id.input()),
        };
        if coded.iter().all(covers) {
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
        let input = calibration.input(id.input())?;
        let (mean_squares, counts) = match id.role.branch() {
            Branch::Experts => {
                let counts = input.experts.n_tokens().iter().map(|n| *n as f32).collect();
                (input.experts.mean_squares(), counts)
            }
            _ => (input.mean_squares(), vec![n_fitted]),
        };
        let d = input.d();
        let sum = |(i, v): (usize, &f32)| v * counts[i / d];
        let sums: Vec<f32> = mean_squares.iter().enumerate().map(sum).collect();
        let n = counts.len();
        for (part, width, values_of) in [("in_sum2", d, sums), ("counts", 1, counts)] {
            let name = format!("{}.{part}", id.weight());
            writer.add_tensor(&name, Type::F32, &[width, n]).map_err(refuse)?;
            values.push(values_of);
        }
    }
    let mut unfinished = Unfinished::create(path)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let written = writer.write(unfinished.file(), |i, out| out.write_all(&bytes(&values[i])));
    written.map_err(refuse)?;
    Ok(unfinished.publish()?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use calibration::{
        GrowingInput, ModelId, MomentScratch, PassageKind, Provenance, Sampling, TextSketch,
    };
    use numerics::{MatMul, ReferenceMatMul};

    use super::*;

    const D: usize = 2;

    /// A calibration of the inputs of two experts' gates, of which one has seen nothing, and of a shared expert's.
    fn calibration(path: &Path, [experts, shared]: [MatrixId; 2]) -> Calibration {
        let model = ModelId {
            sha256: "ab".repeat(32),
            architecture: "qwen2moe".to_owned(),
            n_layer: 1,
            n_embd: D as u32,
            n_ff: 4,
        };
        let provenance = Provenance {
            model,
            texts: Vec::new(),
            sketch: TextSketch::of([&[1, 2, 3, 4][..]]),
            n_fitted: 2,
            n_held_out: 2,
            n_ctx: 2,
            tokens: Vec::new(),
            seed: 0,
            tool: "test 1".to_owned(),
            llama_cpp: "test 2".to_owned(),
        };
        let (rows, sampling) = ([1.0, 2.0, 3.0, 0.0], Sampling::new((2, 0), (2, 1), 0));
        let seen = |of_experts: bool| {
            let mut growing = GrowingInput::new(D, 8);
            let mut scratch = MomentScratch::default();
            for kind in [PassageKind::Fitted, PassageKind::HeldOut] {
                growing.add((kind, 0), (&rows, 1), &sampling, &ReferenceMatMul, &mut scratch);
            }
            if of_experts {
                let by = (&ReferenceMatMul as &dyn MatMul, &mut scratch);
                growing.add_by_expert(&rows, &[1, 1], (2, false), by);
            }
            growing.finish()
        };
        let inputs = [(experts.input(), seen(true)), (shared.input(), seen(false))].into();
        calibration::write(File::create(path).unwrap(), &provenance, &inputs).unwrap();
        Calibration::open(path).unwrap()
    }

    #[test]
    fn experts_have_squares_of_their_own_in_the_file_for_llama_quantize() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_shexp.weight"];
        let ids = names.map(|name| MatrixId::of_weight(name).unwrap());
        let calibration = calibration(&folder.path().join("calib.gguf"), ids);
        assert!(calibration.covers_experts(ids[0].input()));
        let path = folder.path().join("importance.gguf");
        write(&path, &calibration, &ids.into()).unwrap();
        let written = Imatrix::open(&path).unwrap();
        assert_eq!(written.importance(names[0], D, Some(2)).unwrap(), [5.0, 2.0]);
        assert_eq!(written.importance(names[1], D, None).unwrap(), [5.0, 2.0]);
        let experts = written.experts(names[0], D, 2).unwrap();
        assert_eq!((experts[0].count, experts[1].count), (0.0, 2.0));
        assert_eq!(experts[1].mean_squares, [5.0, 2.0]);
    }
}
