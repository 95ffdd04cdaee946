//! An importance matrix as llama-imatrix writes it.

use std::path::Path;

use ggml::Type;
use ggml::gguf::{GgufWriter, WriteError};

/// Writes an importance matrix with the given mean squares per weight name; `count` inputs are claimed to
/// have been seen.
///
/// # Errors
/// [`WriteError`].
pub fn write_imatrix(
    path: &Path,
    entries: &[(String, Vec<f32>)],
    count: f32,
) -> Result<(), WriteError> {
    let mut writer = GgufWriter::new();
    writer.set("general.type", "imatrix")?;
    writer.set("imatrix.datasets", vec!["random".to_owned()])?;
    writer.set("imatrix.chunk_count", 1u32)?;
    writer.set("imatrix.chunk_size", 512u32)?;
    let mut data = Vec::new();
    for (weight, mean_squares) in entries {
        writer.add_tensor(&format!("{weight}.in_sum2"), Type::F32, &[mean_squares.len()])?;
        data.push(mean_squares.iter().flat_map(|v| (v * count).to_le_bytes()).collect::<Vec<u8>>());
        writer.add_tensor(&format!("{weight}.counts"), Type::F32, &[1])?;
        data.push(count.to_le_bytes().to_vec());
    }
    let out = std::io::BufWriter::new(std::fs::File::create(path)?);
    writer.write(out, |index, out| out.write_all(&data[index]))
}
