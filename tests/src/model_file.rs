//! A whole GGUF in memory, to be changed at will and written again.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use format::{MatrixShape, Sidecar};
use ggml::Type;
use ggml::gguf::{GgufFile, GgufWriter, Value};

/// A tensor with its data.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Full name.
    pub name: String,
    /// Element type.
    pub ty: Type,
    /// Dimensions, innermost first.
    pub dims: Vec<usize>,
    /// Data in file byte order.
    pub data: Vec<u8>,
}

impl Tensor {
    /// An F32 tensor.
    #[must_use]
    pub fn from_f32(name: &str, dims: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.to_owned(), ty: Type::F32, dims: dims.to_vec(), data }
    }

    /// The sidecar of the matrix `stem` (`blk.0.ffn_up`).
    #[must_use]
    pub fn from_sidecar(stem: &str, sidecar: Sidecar) -> Self {
        let spec = sidecar.spec;
        let name = format!("{stem}.{}", spec.suffix);
        Self { name, ty: spec.element_type.into(), dims: spec.dims, data: sidecar.data }
    }

    /// Values of a type that ggml converts to F32.
    ///
    /// # Panics
    /// For other types.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.dims.iter().product()];
        self.ty.rows_to_float(&self.data, self.dims[0], &mut values).expect("a float type");
        values
    }

    /// The shape, for a matrix.
    ///
    /// # Panics
    /// For other tensors.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        let [d_in, d_out] = self.dims[..] else { panic!("{} is no matrix", self.name) };
        MatrixShape::new(d_in, d_out)
    }
}

/// Metadata and tensors in file order.
#[derive(Clone, Debug, Default)]
pub struct ModelFile {
    /// Metadata.
    pub metadata: Vec<(String, Value)>,
    /// Tensors.
    pub tensors: Vec<Tensor>,
}

impl ModelFile {
    /// Reads the file at `path`.
    ///
    /// # Panics
    /// If it is no intact GGUF.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let file = GgufFile::open(path).expect("an intact GGUF");
        let value = |key: String| {
            let value = file.value(&key).expect("the key was listed");
            (key, value)
        };
        let tensor = |info: &ggml::gguf::TensorInfo| Tensor {
            name: info.name().to_owned(),
            ty: info.ty(),
            dims: info.dims().to_vec(),
            data: file.data(info).to_vec(),
        };
        let metadata = file.keys().into_iter().map(value).collect();
        Self { metadata, tensors: file.tensors().iter().map(tensor).collect() }
    }

    /// Writes the file to `path`.
    ///
    /// # Panics
    /// If the format cannot hold it, or writing fails.
    pub fn write(&self, path: &Path) {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.metadata {
            writer.set(key, value.clone()).expect("a key and value that the format holds");
        }
        for tensor in &self.tensors {
            writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims).expect("a possible tensor");
        }
        let out = BufWriter::new(File::create(path).expect("a writable folder"));
        writer.write(out, |i, out| out.write_all(&self.tensors[i].data)).expect("a complete file");
    }

    /// Sets `key`, replacing an earlier value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.remove_key(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    /// Removes `key`.
    pub fn remove_key(&mut self, key: &str) {
        self.metadata.retain(|(k, _)| k != key);
    }

    /// Position of the tensor `name`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn position(&self, name: &str) -> usize {
        let found = self.tensors.iter().position(|t| t.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[self.position(name)]
    }

    /// The tensor `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn tensor_mut(&mut self, name: &str) -> &mut Tensor {
        let position = self.position(name);
        &mut self.tensors[position]
    }

    /// Puts `tensors` where the tensor `name` stands.
    ///
    /// # Panics
    /// If there is none.
    pub fn replace(&mut self, name: &str, tensors: impl IntoIterator<Item = Tensor>) {
        let position = self.position(name);
        self.tensors.splice(position..=position, tensors);
    }

    /// Converts every tensor that holds floats of a block or half type to F32.
    pub fn widen(&mut self) {
        for tensor in &mut self.tensors {
            if tensor.ty != Type::F32 && tensor.ty.has_to_float() {
                *tensor = Tensor::from_f32(&tensor.name, &tensor.dims, &tensor.to_f32());
            }
        }
    }
}
