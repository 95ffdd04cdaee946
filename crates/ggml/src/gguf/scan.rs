//! First look at a GGUF's metadata, before ggml parses it.
//!
//! ggml allocates arrays by the length that the file claims (bounded only by the file's size, which for a
//! model is many gigabytes) and hands out names as C strings. So this pass walks the metadata without
//! allocating anything and refuses what does not fit the file. Everything else is left to ggml.

/// More metadata than this is a damaged file: the largest vocabularies need about 20 MB.
const MAX_METADATA_BYTES: usize = 256 << 20;

/// More keys or tensors than this are a damaged file: the largest models have some thousands. ggml needs hundreds of
/// bytes for a tensor that the file describes in 25, so what it allocates is bounded by this, not by the file.
pub(super) const MAX_ENTRIES: u64 = 1 << 16;

/// Smallest metadata entry: key length, a key of one byte, type, a value of one byte.
const MIN_KEY_BYTES: usize = 8 + 1 + 4 + 1;
/// Smallest tensor entry: name length, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;

/// Checks magic, version, counts and every length of the metadata of `file`.
///
/// The error says what is wrong and where.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let metadata = &file[..file.len().min(MAX_METADATA_BYTES)];
    let mut cursor = Cursor { file: metadata, position: 0, cut: metadata.len() < file.len() };
    let (n_tensors, n_keys) = header(&mut cursor)?;
    cursor.check_entries("metadata keys", n_keys, MIN_KEY_BYTES)?;
    for i in 0..n_keys {
        key_value(&mut cursor).map_err(|e| format!("metadata key {i}: {e}"))?;
    }
    cursor.check_entries("tensors", n_tensors, MIN_TENSOR_BYTES)?;
    for i in 0..n_tensors {
        tensor(&mut cursor).map_err(|e| format!("tensor {i}: {e}"))?;
    }
    Ok(())
}

/// Name and type of the first tensor with a type for which `wanted` holds, as far as the metadata can be read.
pub(super) fn first_tensor(file: &[u8], wanted: impl Fn(u32) -> bool) -> Option<(String, u32)> {
    let metadata = &file[..file.len().min(MAX_METADATA_BYTES)];
    let mut cursor = Cursor { file: metadata, position: 0, cut: metadata.len() < file.len() };
    let (n_tensors, n_keys) = header(&mut cursor).ok()?;
    for _ in 0..n_keys {
        key_value(&mut cursor).ok()?;
    }
    for _ in 0..n_tensors {
        let (name, ty) = tensor(&mut cursor).ok()?;
        if wanted(ty) {
            return Some((name.to_owned(), ty));
        }
    }
    None
}

fn header(cursor: &mut Cursor<'_>) -> Result<(u64, u64), String> {
    if cursor.take(4).ok() != Some(b"GGUF") {
        return Err("not a GGUF file".to_owned());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} is not supported, only 2 and 3 are"));
    }
    Ok((cursor.u64()?, cursor.u64()?))
}

fn key_value(cursor: &mut Cursor<'_>) -> Result<(), String> {
    let key = cursor.name()?;
    let ty = cursor.u32()?;
    let result = match ty {
        ggml_sys::GGUF_TYPE_ARRAY => {
            let element = cursor.u32()?;
            let n = cursor.u64()?;
            values(cursor, element, n)
        }
        _ => values(cursor, ty, 1),
    };
    result.map_err(|e| format!("'{key}': {e}"))
}

fn values(cursor: &mut Cursor<'_>, ty: u32, n: u64) -> Result<(), String> {
    if ty == ggml_sys::GGUF_TYPE_STRING {
        cursor.check_count("strings", n, 8)?;
        for _ in 0..n {
            cursor.string()?;
        }
        return Ok(());
    }
    let size = value_bytes(ty).ok_or_else(|| format!("{ty} is no type of a value"))?;
    cursor.check_count("values", n, size)?;
    cursor.take(n as usize * size)?;
    Ok(())
}

fn value_bytes(ty: u32) -> Option<usize> {
    match ty {
        ggml_sys::GGUF_TYPE_UINT8 | ggml_sys::GGUF_TYPE_INT8 | ggml_sys::GGUF_TYPE_BOOL => Some(1),
        ggml_sys::GGUF_TYPE_UINT16 | ggml_sys::GGUF_TYPE_INT16 => Some(2),
        ggml_sys::GGUF_TYPE_UINT32 | ggml_sys::GGUF_TYPE_INT32 | ggml_sys::GGUF_TYPE_FLOAT32 => {
            Some(4)
        }
        ggml_sys::GGUF_TYPE_UINT64 | ggml_sys::GGUF_TYPE_INT64 | ggml_sys::GGUF_TYPE_FLOAT64 => {
            Some(8)
        }
        _ => None,
    }
}

/// Name and type.
fn tensor<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a str, u32), String> {
    let name = cursor.name()?;
    let n_dims = cursor.u32()?;
    if n_dims > ggml_sys::GGML_MAX_DIMS {
        return Err(format!("'{name}' has {n_dims} dimensions, at most 4 are possible"));
    }
    cursor.take(8 * n_dims as usize)?;
    let ty = cursor.u32()?;
    cursor.take(8)?;
    Ok((name, ty))
}

/// Reads forward through the metadata; every error says at which byte.
struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
    /// Whether the file goes on after what may be metadata.
    cut: bool,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> usize {
        self.file.len() - self.position
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        if n > self.remaining() {
            return Err(self.ends(n as u64));
        }
        let bytes = &self.file[self.position..self.position + n];
        self.position += n;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn string(&mut self) -> Result<&'a [u8], String> {
        let n = self.u64()?;
        self.check_count("bytes of text", n, 1)?;
        self.take(n as usize)
    }

    /// A key or tensor name: UTF-8 without NUL, since ggml hands it out as a C string, and without what would
    /// make a message about it two lines or a command to the terminal.
    fn name(&mut self) -> Result<&'a str, String> {
        let at = self.position;
        let name = std::str::from_utf8(self.string()?).ok().filter(|n| !n.contains('\0'));
        let name = name.ok_or_else(|| format!("the name at byte {at} is not a text"))?;
        if name.chars().any(char::is_control) {
            return Err(format!("the name at byte {at} holds a control character"));
        }
        Ok(name)
    }

    /// Refuses a count of keys or tensors that the rest of the file cannot hold, or that nobody has.
    fn check_entries(&self, what: &str, n: u64, item_bytes: usize) -> Result<(), String> {
        self.check_count(what, n, item_bytes)?;
        if n > MAX_ENTRIES {
            return Err(format!("{n} {what} claimed, more than the {MAX_ENTRIES} of any model"));
        }
        Ok(())
    }

    /// Refuses a count of items that the rest of the file cannot hold.
    fn check_count(&self, what: &str, n: u64, item_bytes: usize) -> Result<(), String> {
        if n > (self.remaining() / item_bytes) as u64 {
            return Err(format!(
                "{n} {what} claimed: {}",
                self.ends(n.saturating_mul(item_bytes as u64))
            ));
        }
        Ok(())
    }

    fn ends(&self, wanted: u64) -> String {
        let (at, end) = (self.position, self.file.len());
        if self.cut {
            return format!(
                "byte {at}: metadata of more than {MAX_METADATA_BYTES} bytes, the file is damaged"
            );
        }
        format!("byte {at}: {wanted} bytes expected, the file ends at {end} (truncated or damaged)")
    }
}
