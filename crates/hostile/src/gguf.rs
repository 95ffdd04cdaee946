//! GGUF written by hand, byte by byte, so that readers are tested against the format and not against the
//! project's writer - and so that every number in the file can be a lie.

/// Types of metadata values, as the format numbers them.
pub mod value_type {
    /// U32.
    pub const U32: u32 = 4;
    /// F32.
    pub const F32: u32 = 6;
    /// Text.
    pub const STRING: u32 = 8;
    /// Elements of one type.
    pub const ARRAY: u32 = 9;
    /// U64.
    pub const U64: u32 = 10;
    /// U16.
    pub const U16: u32 = 2;
    /// I32.
    pub const I32: u32 = 5;
    /// Boolean.
    pub const BOOL: u32 = 7;
}

/// Types of tensors, as the format numbers them (`enum ggml_type`).
pub mod tensor_type {
    /// F32.
    pub const F32: u32 = 0;
    /// F16.
    pub const F16: u32 = 1;
    /// Blocks of 32 values in 18 bytes.
    pub const Q4_0: u32 = 2;
    /// Blocks of 32 values in 34 bytes.
    pub const Q8_0: u32 = 8;
    /// I8.
    pub const I8: u32 = 24;
    /// I16.
    pub const I16: u32 = 25;
    /// I32.
    pub const I32: u32 = 26;
}

/// The alignment of a file that states none.
pub const ALIGNMENT: usize = 32;

/// A metadata value as it stands in the file: its type's number and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    ty: u32,
    bytes: Vec<u8>,
}

impl Value {
    /// Any type, any bytes.
    #[must_use]
    pub fn raw(ty: u32, bytes: Vec<u8>) -> Self {
        Self { ty, bytes }
    }

    /// A text of any bytes.
    #[must_use]
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::raw(value_type::STRING, counted(text.as_ref()))
    }

    /// U32.
    #[must_use]
    pub fn u32(value: u32) -> Self {
        Self::raw(value_type::U32, value.to_le_bytes().to_vec())
    }

    /// U16.
    #[must_use]
    pub fn u16(value: u16) -> Self {
        Self::raw(value_type::U16, value.to_le_bytes().to_vec())
    }

    /// I32.
    #[must_use]
    pub fn i32(value: i32) -> Self {
        Self::raw(value_type::I32, value.to_le_bytes().to_vec())
    }

    /// U64.
    #[must_use]
    pub fn u64(value: u64) -> Self {
        Self::raw(value_type::U64, value.to_le_bytes().to_vec())
    }

    /// F32.
    #[must_use]
    pub fn f32(value: f32) -> Self {
        Self::raw(value_type::F32, value.to_le_bytes().to_vec())
    }

    /// Boolean.
    #[must_use]
    pub fn bool(value: bool) -> Self {
        Self::raw(value_type::BOOL, vec![u8::from(value)])
    }

    /// An array that claims `n` elements of type `ty` and holds `bytes`.
    #[must_use]
    pub fn array(ty: u32, n: u64, bytes: Vec<u8>) -> Self {
        let mut all = ty.to_le_bytes().to_vec();
        all.extend(n.to_le_bytes());
        all.extend(bytes);
        Self::raw(value_type::ARRAY, all)
    }

    /// An array of texts.
    #[must_use]
    pub fn texts<T: AsRef<[u8]>>(texts: &[T]) -> Self {
        let bytes = texts.iter().flat_map(|t| counted(t.as_ref())).collect();
        Self::array(value_type::STRING, texts.len() as u64, bytes)
    }

    /// An array of F32.
    #[must_use]
    pub fn f32s(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::array(value_type::F32, values.len() as u64, bytes)
    }

    /// An array of I32.
    #[must_use]
    pub fn i32s(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::array(value_type::I32, values.len() as u64, bytes)
    }

    /// An array of U64.
    #[must_use]
    pub fn u64s(values: &[u64]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::array(value_type::U64, values.len() as u64, bytes)
    }
}

fn counted(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// A tensor: what the file says about it, and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name, any bytes.
    pub name: Vec<u8>,
    /// Number of dimensions that the file claims; `None`: as many as there are.
    pub n_dims: Option<u32>,
    /// Dimensions, innermost first.
    pub dims: Vec<u64>,
    /// Type, any number.
    pub ty: u32,
    /// Place of the data that the file claims; `None`: where they are.
    pub offset: Option<u64>,
    /// Data as it lies in the file.
    pub data: Vec<u8>,
}

impl Tensor {
    /// A tensor that tells the truth.
    #[must_use]
    pub fn new(name: impl AsRef<[u8]>, ty: u32, dims: &[u64], data: Vec<u8>) -> Self {
        let name = name.as_ref().to_vec();
        Self { name, n_dims: None, dims: dims.to_vec(), ty, offset: None, data }
    }

    /// F32 values.
    #[must_use]
    pub fn f32(name: impl AsRef<[u8]>, dims: &[u64], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, tensor_type::F32, dims, data)
    }

    /// F16 values, given as their bits.
    #[must_use]
    pub fn f16(name: impl AsRef<[u8]>, dims: &[u64], bits: &[u16]) -> Self {
        let data = bits.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, tensor_type::F16, dims, data)
    }

    /// I16 values.
    #[must_use]
    pub fn i16(name: impl AsRef<[u8]>, dims: &[u64], values: &[i16]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, tensor_type::I16, dims, data)
    }

    /// I32 values.
    #[must_use]
    pub fn i32(name: impl AsRef<[u8]>, dims: &[u64], values: &[i32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, tensor_type::I32, dims, data)
    }

    /// Overwrites the two bytes of element `index`.
    pub fn set_u16(&mut self, index: usize, bits: u16) {
        self.data[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
    }

    /// Overwrites the four bytes of element `index`.
    pub fn set_u32(&mut self, index: usize, bits: u32) {
        self.data[4 * index..4 * index + 4].copy_from_slice(&bits.to_le_bytes());
    }
}

/// A file, all of whose numbers may be changed before it becomes bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gguf {
    /// First four bytes.
    pub magic: [u8; 4],
    /// Version of the format.
    pub version: u32,
    /// Number of tensors that the file claims; `None`: as many as there are.
    pub n_tensors: Option<u64>,
    /// Number of metadata entries that the file claims; `None`: as many as there are.
    pub n_keys: Option<u64>,
    /// Metadata in file order.
    pub keys: Vec<(Vec<u8>, Value)>,
    /// Tensors in file order.
    pub tensors: Vec<Tensor>,
}

impl Default for Gguf {
    fn default() -> Self {
        let (keys, tensors) = (Vec::new(), Vec::new());
        Self { magic: *b"GGUF", version: 3, n_tensors: None, n_keys: None, keys, tensors }
    }
}

/// Bytes of a file, and where its parts begin and end.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The file.
    pub bytes: Vec<u8>,
    /// Ends of all parts in ascending order, with the part's name; the last is that of the file.
    pub boundaries: Vec<(String, usize)>,
}

impl Encoded {
    fn put(&mut self, part: impl Into<String>, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.boundaries.push((part.into(), self.bytes.len()));
    }

    fn pad(&mut self, part: impl Into<String>) {
        let n = self.bytes.len().next_multiple_of(ALIGNMENT) - self.bytes.len();
        self.put(part, &vec![0; n]);
    }
}

impl Gguf {
    /// Sets `key`, replacing an earlier value where it stands.
    pub fn set(&mut self, key: impl AsRef<[u8]>, value: Value) {
        match self.keys.iter_mut().find(|(k, _)| k == key.as_ref()) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.as_ref().to_vec(), value)),
        }
    }

    /// The same file with `key`.
    #[must_use]
    pub fn with(mut self, key: impl AsRef<[u8]>, value: Value) -> Self {
        self.set(key, value);
        self
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: impl AsRef<[u8]>) {
        self.keys.retain(|(k, _)| k != key.as_ref());
    }

    /// The tensor `name`, to be changed.
    ///
    /// # Panics
    /// If there is none.
    pub fn tensor(&mut self, name: impl AsRef<[u8]>) -> &mut Tensor {
        let name = name.as_ref();
        let found = self.tensors.iter_mut().find(|t| t.name == name);
        found.unwrap_or_else(|| panic!("no tensor {}", String::from_utf8_lossy(name)))
    }

    /// Removes the tensor `name`.
    pub fn remove_tensor(&mut self, name: impl AsRef<[u8]>) {
        self.tensors.retain(|t| t.name != name.as_ref());
    }

    /// The file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.encode().bytes
    }

    /// The file and its boundaries.
    #[must_use]
    pub fn encode(&self) -> Encoded {
        let mut out = Encoded { bytes: Vec::new(), boundaries: Vec::new() };
        out.put("magic", &self.magic);
        out.put("version", &self.version.to_le_bytes());
        let n_tensors = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        out.put("number of tensors", &n_tensors.to_le_bytes());
        let n_keys = self.n_keys.unwrap_or(self.keys.len() as u64);
        out.put("number of keys", &n_keys.to_le_bytes());
        for (key, value) in &self.keys {
            let name = String::from_utf8_lossy(key).into_owned();
            out.put(format!("length of key {name}"), &(key.len() as u64).to_le_bytes());
            out.put(format!("key {name}"), key);
            out.put(format!("type of {name}"), &value.ty.to_le_bytes());
            out.put(format!("value of {name}"), &value.bytes);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            describe(&mut out, tensor, offset);
            offset += tensor.data.len().next_multiple_of(ALIGNMENT) as u64;
        }
        out.pad("padding after the descriptions");
        for tensor in &self.tensors {
            let name = String::from_utf8_lossy(&tensor.name).into_owned();
            out.put(format!("data of {name}"), &tensor.data);
            out.pad(format!("padding after {name}"));
        }
        out
    }
}

fn describe(out: &mut Encoded, tensor: &Tensor, offset: u64) {
    let name = String::from_utf8_lossy(&tensor.name).into_owned();
    out.put(format!("length of the name {name}"), &(tensor.name.len() as u64).to_le_bytes());
    out.put(format!("name {name}"), &tensor.name);
    let n_dims = tensor.n_dims.unwrap_or(tensor.dims.len() as u32);
    out.put(format!("number of dimensions of {name}"), &n_dims.to_le_bytes());
    let dims: Vec<u8> = tensor.dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    out.put(format!("dimensions of {name}"), &dims);
    out.put(format!("type of {name}"), &tensor.ty.to_le_bytes());
    out.put(format!("offset of {name}"), &tensor.offset.unwrap_or(offset).to_le_bytes());
}
