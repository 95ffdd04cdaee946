//! Importance matrices: the mean square of every input of a weight, as `llama-imatrix` collects them.

use std::path::{Path, PathBuf};

use crate::Type;
use crate::gguf::{Array, GgufError, GgufFile, Value};

/// Why an importance matrix cannot be used. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The file cannot be read as a GGUF.
    #[error(
        "{0} (an importance matrix must be a GGUF as llama-imatrix writes it, not its old .dat format)"
    )]
    Gguf(#[from] GgufError),
    /// A GGUF, but no importance matrix.
    #[error("{path}: a GGUF, but no importance matrix as llama-imatrix writes it", path = path.display())]
    NotImatrix {
        /// The file.
        path: PathBuf,
    },
    /// There is no entry for a weight.
    #[error("{path}: no entry for '{weight}': made for another model, or with other tensors excluded", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The weight.
        weight: String,
    },
    /// An entry does not fit its weight.
    #[error("{path}: the entry for '{weight}' has the dimensions {dims:?}, the weight has {n_in} inputs: made for another model", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The weight.
        weight: String,
        /// Dimensions of the entry, innermost first.
        dims: Vec<usize>,
        /// Number of inputs of the weight.
        n_in: usize,
    },
    /// An entry was never filled.
    #[error("{path}: the entry for '{weight}' has a count of {count}: collect with more text", path = path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// The weight.
        weight: String,
        /// The count found.
        count: f32,
    },
    /// An entry holds a value that no sum of squares has.
    #[error("{path}: the entry for '{weight}' holds {value} at input {index}: damaged", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The weight.
        weight: String,
        /// The input.
        index: usize,
        /// The value found.
        value: f32,
    },
}

/// An open importance matrix.
#[derive(Debug)]
pub struct Imatrix {
    file: GgufFile,
}

impl Imatrix {
    /// Opens the importance matrix at `path`.
    ///
    /// # Errors
    /// [`ImatrixError::Gguf`] or [`ImatrixError::NotImatrix`].
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        let file = GgufFile::open(path)?;
        let has_sums = file.tensors().iter().any(|t| t.name().ends_with(".in_sum2"));
        if !has_sums || file.value("imatrix.chunk_count").is_none() {
            return Err(ImatrixError::NotImatrix { path: path.to_owned() });
        }
        Ok(Self { file })
    }

    /// The path it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Names of the texts it was made from.
    #[must_use]
    pub fn datasets(&self) -> Vec<String> {
        match self.file.value("imatrix.datasets") {
            Some(Value::Array(Array::String(names))) => names,
            _ => Vec::new(),
        }
    }

    /// Mean square E[x_i^2] of every input of `weight` (`blk.0.ffn_up.weight`), which has `n_in` inputs.
    ///
    /// # Errors
    /// [`ImatrixError::Missing`], [`ImatrixError::Shape`], [`ImatrixError::Count`] or
    /// [`ImatrixError::Value`].
    pub fn importance(&self, weight: &str, n_in: usize) -> Result<Vec<f32>, ImatrixError> {
        let sums = self.entry(weight, "in_sum2", n_in)?;
        let count = self.entry(weight, "counts", 1)?[0];
        let (path, weight) = (self.path().to_owned(), weight.to_owned());
        if !(count.is_finite() && count > 0.0) {
            return Err(ImatrixError::Count { path, weight, count });
        }
        match sums.iter().position(|sum| !(sum / count).is_finite() || *sum < 0.0) {
            Some(index) => Err(ImatrixError::Value { path, weight, index, value: sums[index] }),
            None => Ok(sums.into_iter().map(|sum| sum / count).collect()),
        }
    }

    /// The `n` values of the tensor `<weight>.<part>`, of one matrix: experts have one entry each.
    fn entry(&self, weight: &str, part: &str, n: usize) -> Result<Vec<f32>, ImatrixError> {
        let (path, weight) = (self.path().to_owned(), weight.to_owned());
        let Some(tensor) = self.file.tensor(&format!("{weight}.{part}")) else {
            return Err(ImatrixError::Missing { path, weight });
        };
        if tensor.dims() != [n] || tensor.ty() != Type::F32 {
            return Err(ImatrixError::Shape {
                path,
                weight,
                dims: tensor.dims().to_vec(),
                n_in: n,
            });
        }
        Ok(self.file.to_f32(tensor)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tempfile::TempDir;

    use super::*;
    use crate::gguf::GgufWriter;

    /// An importance matrix with one entry, `w`.
    fn imatrix(sums: &[f32], counts: &[f32]) -> (TempDir, Imatrix) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        let mut writer = GgufWriter::new();
        writer.set("imatrix.chunk_count", 3u32).unwrap();
        writer.set("imatrix.datasets", vec!["text".to_owned()]).unwrap();
        writer.add_tensor("w.in_sum2", Type::F32, &[sums.len()]).unwrap();
        writer.add_tensor("w.counts", Type::F32, &[1, counts.len()]).unwrap();
        let data: Vec<Vec<u8>> =
            [sums, counts].map(|v| v.iter().flat_map(|x| x.to_le_bytes()).collect()).into();
        writer.write(File::create(&path).unwrap(), |i, out| out.write_all(&data[i])).unwrap();
        let open = Imatrix::open(&path).unwrap();
        (dir, open)
    }

    #[test]
    fn importance_is_the_mean_square() {
        let (_dir, imatrix) = imatrix(&[8.0, 0.0, 2.0], &[4.0]);
        assert_eq!(imatrix.importance("w", 3).unwrap(), [2.0, 0.0, 0.5]);
        assert_eq!(imatrix.datasets(), ["text"]);
    }

    #[test]
    fn entries_of_other_models_are_refused() {
        let (_dir, one) = imatrix(&[1.0; 3], &[4.0]);
        assert!(matches!(one.importance("v", 3), Err(ImatrixError::Missing { .. })));
        assert!(matches!(one.importance("w", 4), Err(ImatrixError::Shape { .. })));
        let (_dir, experts) = imatrix(&[1.0; 3], &[4.0, 4.0]);
        assert!(matches!(experts.importance("w", 3), Err(ImatrixError::Shape { .. })));
    }

    #[test]
    fn damaged_entries_are_refused() {
        for count in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let (_dir, imatrix) = imatrix(&[1.0; 3], &[count]);
            assert!(matches!(imatrix.importance("w", 3), Err(ImatrixError::Count { .. })));
        }
        for sum in [-1.0, f32::NAN, f32::INFINITY] {
            let (_dir, imatrix) = imatrix(&[1.0, sum], &[4.0]);
            let error = imatrix.importance("w", 2).unwrap_err();
            assert!(matches!(error, ImatrixError::Value { index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        GgufWriter::new().write(File::create(&path).unwrap(), |_, _| Ok(())).unwrap();
        assert!(matches!(Imatrix::open(&path), Err(ImatrixError::NotImatrix { .. })));
        std::fs::write(&path, b"old format").unwrap();
        let error = Imatrix::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("model.gguf: not a GGUF file (") && !error.contains('\n'),
            "{error}"
        );
    }
}
