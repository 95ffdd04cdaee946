//! Importance matrices: the mean square of every input of a weight, as `llama-imatrix` collects them.

mod legacy;

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::Type;
use crate::gguf::{self, Array, GgufError, GgufFile, Value};

pub(crate) use legacy::is_legacy;

/// Why an importance matrix cannot be used. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Neither a GGUF nor in the old format.
    #[error("{path}: {what}: give an importance matrix as llama-imatrix writes it, GGUF or .dat", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A damaged file in the old format.
    #[error("{path}: an importance matrix in the old format, but {reason}: make it again with llama-imatrix", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
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

/// What one of many matrices in one tensor has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct OfExpert {
    /// E[x_i^2] of its inputs, `[n_in]`.
    pub mean_squares: Vec<f32>,
    /// How many inputs those were.
    pub count: f32,
}

/// An open importance matrix.
#[derive(Debug)]
pub struct Imatrix {
    path: PathBuf,
    file: Format,
}

/// How it is stored.
#[derive(Debug)]
enum Format {
    Gguf(GgufFile),
    /// `imatrix.dat`.
    Legacy(Mmap, legacy::Index),
}

impl Imatrix {
    /// Opens the importance matrix at `path`, a GGUF or in the old format (`imatrix.dat`).
    ///
    /// # Errors
    /// [`ImatrixError::Gguf`], [`ImatrixError::Foreign`], [`ImatrixError::Malformed`] or
    /// [`ImatrixError::NotImatrix`].
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        let map = gguf::map(path)?;
        let file = if is_legacy(&map) {
            let malformed = |reason| ImatrixError::Malformed { path: path.to_owned(), reason };
            let index = legacy::Index::of(&map).map_err(malformed)?;
            Format::Legacy(map, index)
        } else {
            Format::Gguf(open_gguf(path)?)
        };
        Ok(Self { path: path.to_owned(), file })
    }

    /// The path it was opened with.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the texts it was made from.
    #[must_use]
    pub fn datasets(&self) -> Vec<String> {
        match &self.file {
            Format::Gguf(file) => match file.value("imatrix.datasets") {
                Some(Value::Array(Array::String(names))) => names,
                _ => Vec::new(),
            },
            Format::Legacy(_, index) => index.dataset.iter().cloned().collect(),
        }
    }

    /// Mean square E[x_i^2] of every input of `weight` (`blk.0.ffn_up.weight`), which has `n_in` inputs; of the `n_experts`
    /// matrices of a weight of three dimensions over all that any of them has seen.
    ///
    /// # Errors
    /// [`ImatrixError::Missing`], [`ImatrixError::Shape`], [`ImatrixError::Count`] or
    /// [`ImatrixError::Value`].
    pub fn importance(
        &self,
        weight: &str,
        n_in: usize,
        n_experts: Option<usize>,
    ) -> Result<Vec<f32>, ImatrixError> {
        let n_matrices = n_experts.unwrap_or(1);
        let (sums, count) = match &self.file {
            Format::Gguf(file) => {
                let entry = |part: &str, n| self.entry(file, weight, part, (n, n_matrices));
                (entry("in_sum2", n_in)?, entry("counts", 1)?.iter().sum())
            }
            // What is stored is in proportion to the mean squares, whatever an expert has seen.
            Format::Legacy(map, index) => {
                let found = index.entry(map, weight);
                let (sums, count) = self.legacy_entry(found, weight, (n_in, n_matrices))?;
                (sums, count * n_matrices as f32)
            }
        };
        let mut all = sums.chunks_exact(n_in.max(1));
        let mut sums = all.next().map(<[f32]>::to_vec).unwrap_or_default();
        all.for_each(|of_one| sums.iter_mut().zip(of_one).for_each(|(sum, v)| *sum += v));
        let (path, weight) = (self.path().to_owned(), weight.to_owned());
        if !(count.is_finite() && count > 0.0) {
            return Err(ImatrixError::Count { path, weight, count });
        }
        match sums.iter().position(|sum| !(sum / count).is_finite() || *sum < 0.0) {
            Some(index) => Err(ImatrixError::Value { path, weight, index, value: sums[index] }),
            None => Ok(sums.into_iter().map(|sum| sum / count).collect()),
        }
    }

    /// What every one of the `n_experts` matrices of `weight` has seen, each with `n_in` inputs. Empty for the old format, which does
    /// not tell how many inputs went to which.
    ///
    /// # Errors
    /// As [`Self::importance`].
    pub fn experts(
        &self,
        weight: &str,
        n_in: usize,
        n_experts: usize,
    ) -> Result<Vec<OfExpert>, ImatrixError> {
        let Format::Gguf(file) = &self.file else { return Ok(Vec::new()) };
        let entry = |part: &str, n| self.entry(file, weight, part, (n, n_experts));
        let (sums, counts) = (entry("in_sum2", n_in)?, entry("counts", 1)?);
        let (path, weight) = (|| self.path().to_owned(), || weight.to_owned());
        let expert = |(at, (sums, &count)): (usize, (&[f32], &f32))| {
            if !(count.is_finite() && count >= 0.0) {
                return Err(ImatrixError::Count { path: path(), weight: weight(), count });
            }
            let mean_squares: Vec<f32> = sums.iter().map(|sum| sum / count.max(1.0)).collect();
            match mean_squares.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
                Some(i) => Err(ImatrixError::Value {
                    path: path(),
                    weight: weight(),
                    index: at * n_in + i,
                    value: sums[i],
                }),
                None => Ok(OfExpert { mean_squares, count }),
            }
        };
        sums.chunks_exact(n_in.max(1)).zip(&counts).enumerate().map(expert).collect()
    }

    /// The values of the tensor `<weight>.<part>`, `n` of each of `n_matrices`.
    fn entry(
        &self,
        file: &GgufFile,
        weight: &str,
        part: &str,
        (n, n_matrices): (usize, usize),
    ) -> Result<Vec<f32>, ImatrixError> {
        let (path, weight) = (self.path().to_owned(), weight.to_owned());
        let Some(tensor) = file.tensor(&format!("{weight}.{part}")) else {
            return Err(ImatrixError::Missing { path, weight });
        };
        let fits = match tensor.dims() {
            [len] => *len == n && n_matrices == 1,
            dims => *dims == [n, n_matrices],
        };
        if !fits || tensor.ty() != Type::F32 {
            return Err(ImatrixError::Shape {
                path,
                weight,
                dims: tensor.dims().to_vec(),
                n_in: n,
            });
        }
        Ok(file.to_f32(tensor)?)
    }

    /// `found` if it is of `n_matrices` matrices with `n_in` inputs.
    fn legacy_entry(
        &self,
        found: Option<(Vec<f32>, f32)>,
        weight: &str,
        (n_in, n_matrices): (usize, usize),
    ) -> Result<(Vec<f32>, f32), ImatrixError> {
        let (path, weight) = (self.path().to_owned(), weight.to_owned());
        match found {
            None => Err(ImatrixError::Missing { path, weight }),
            Some((values, _)) if Some(values.len()) != n_in.checked_mul(n_matrices) => {
                let dims = vec![values.len()];
                Err(ImatrixError::Shape { path, weight, dims, n_in })
            }
            Some(entry) => Ok(entry),
        }
    }
}

/// The GGUF at `path`, which must be an importance matrix.
fn open_gguf(path: &Path) -> Result<GgufFile, ImatrixError> {
    let file = GgufFile::open(path).map_err(|error| match error {
        GgufError::Foreign { path, what, .. } => ImatrixError::Foreign { path, what },
        other => other.into(),
    })?;
    let has_sums = file.tensors().iter().any(|t| t.name().ends_with(".in_sum2"));
    if !has_sums || file.value("imatrix.chunk_count").is_none() {
        return Err(ImatrixError::NotImatrix { path: path.to_owned() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tempfile::TempDir;

    use super::*;
    use crate::gguf::GgufWriter;

    /// An importance matrix with one entry, `w`.
    fn imatrix(sums: &[f32], counts: &[f32]) -> (TempDir, Imatrix) {
        with_dims(&[sums.len()], sums, counts)
    }

    /// The same, whose sums have these dimensions.
    fn with_dims(dims: &[usize], sums: &[f32], counts: &[f32]) -> (TempDir, Imatrix) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        let mut writer = GgufWriter::new();
        writer.set("imatrix.chunk_count", 3u32).unwrap();
        writer.set("imatrix.datasets", vec!["text".to_owned()]).unwrap();
        writer.add_tensor("w.in_sum2", Type::F32, dims).unwrap();
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
        assert_eq!(imatrix.importance("w", 3, None).unwrap(), [2.0, 0.0, 0.5]);
        assert_eq!(imatrix.datasets(), ["text"]);
    }

    #[test]
    fn entries_of_other_models_are_refused() {
        let (_dir, one) = imatrix(&[1.0; 3], &[4.0]);
        assert!(matches!(one.importance("v", 3, None), Err(ImatrixError::Missing { .. })));
        assert!(matches!(one.importance("w", 4, None), Err(ImatrixError::Shape { .. })));
        let (_dir, experts) = imatrix(&[1.0; 3], &[4.0, 4.0]);
        assert!(matches!(experts.importance("w", 3, None), Err(ImatrixError::Shape { .. })));
        assert!(matches!(experts.importance("w", 3, Some(2)), Err(ImatrixError::Shape { .. })));
    }

    /// The importance matrix of three experts with two inputs.
    fn of_three(sums: [f32; 6], counts: [f32; 3]) -> (TempDir, Imatrix) {
        with_dims(&[2, 3], &sums, &counts)
    }

    /// An expert that no token went to counts for nothing.
    #[test]
    fn experts_count_together_and_each_for_itself() {
        let (_dir, imatrix) = of_three([8.0, 0.0, 0.0, 0.0, 4.0, 6.0], [4.0, 0.0, 2.0]);
        assert_eq!(imatrix.importance("w", 2, Some(3)).unwrap(), [2.0, 1.0]);
        assert!(matches!(imatrix.importance("w", 2, None), Err(ImatrixError::Shape { .. })));
        assert!(matches!(imatrix.importance("w", 2, Some(2)), Err(ImatrixError::Shape { .. })));
        let of = |a, b, count| OfExpert { mean_squares: vec![a, b], count };
        let each = [of(2.0, 0.0, 4.0), of(0.0, 0.0, 0.0), of(2.0, 3.0, 2.0)];
        assert_eq!(imatrix.experts("w", 2, 3).unwrap(), each);
        assert!(matches!(imatrix.experts("w", 2, 2), Err(ImatrixError::Shape { .. })));
        assert!(matches!(imatrix.experts("v", 2, 3), Err(ImatrixError::Missing { .. })));
    }

    #[test]
    fn damage_to_one_expert_is_found() {
        let (_dir, imatrix) = of_three([8.0, 0.0, 0.0, 0.0, -4.0, 6.0], [4.0, 0.0, 2.0]);
        let error = imatrix.experts("w", 2, 3).unwrap_err();
        assert!(matches!(error, ImatrixError::Value { index: 4, .. }), "{error}");
        for count in [-1.0, f32::NAN] {
            let (_dir, imatrix) = of_three([1.0; 6], [4.0, count, 2.0]);
            let error = imatrix.experts("w", 2, 3).unwrap_err();
            assert!(matches!(error, ImatrixError::Count { .. }), "{error}");
        }
    }

    #[test]
    fn damaged_entries_are_refused() {
        for count in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let (_dir, imatrix) = imatrix(&[1.0; 3], &[count]);
            assert!(matches!(imatrix.importance("w", 3, None), Err(ImatrixError::Count { .. })));
        }
        for sum in [-1.0, f32::NAN, f32::INFINITY] {
            let (_dir, imatrix) = imatrix(&[1.0, sum], &[4.0]);
            let error = imatrix.importance("w", 2, None).unwrap_err();
            assert!(matches!(error, ImatrixError::Value { index: 1, .. }), "{error}");
        }
    }

    /// The same mean squares in the old format: sums divided by the number of inputs seen and multiplied by that of calls.
    #[test]
    fn the_old_format_gives_the_same_importance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        let write = |calls: i32, values: &[f32]| {
            let mut bytes = [1i32.to_le_bytes(), 1i32.to_le_bytes()].concat();
            bytes.push(b'w');
            bytes.extend([calls.to_le_bytes(), (values.len() as i32).to_le_bytes()].concat());
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            bytes.extend([9i32.to_le_bytes(), 4i32.to_le_bytes()].concat());
            bytes.extend(b"text");
            std::fs::write(&path, bytes).unwrap();
            Imatrix::open(&path).unwrap()
        };
        let old = write(5, &[10.0, 0.0, 2.5]);
        assert_eq!(old.importance("w", 3, None).unwrap(), [2.0, 0.0, 0.5]);
        assert_eq!((old.datasets(), old.path()), (vec!["text".to_owned()], path.as_path()));
        assert!(matches!(old.importance("v", 3, None), Err(ImatrixError::Missing { .. })));
        assert!(matches!(old.importance("w", 4, None), Err(ImatrixError::Shape { .. })));
        let negative = write(-1, &[1.0]).importance("w", 1, None);
        assert!(matches!(negative, Err(ImatrixError::Count { .. })));
        let nan = write(1, &[1.0, f32::NAN]).importance("w", 2, None);
        assert!(matches!(nan, Err(ImatrixError::Value { index: 1, .. })));
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
