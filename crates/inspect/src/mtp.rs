//! Layers for multi-token prediction (MTP): the last ones of some models, which only guess further tokens ahead.
//!
//! llama.cpp counts them among the layers and leaves them out when it runs text, so that no calibration and no
//! importance matrix knows their inputs. They stay dense unless `--layers` or a policy names them; then they are coded
//! from their weights alone.

use std::ops::Range;

use ggml::gguf::GgufFile;

use crate::Error;

/// The MTP layers of `file`, empty if there are none.
///
/// # Errors
/// [`Error::Gguf`] for counts that are no numbers, [`Error::Model`] for more of them than there are layers.
pub fn layers(file: &GgufFile, architecture: &str) -> Result<Range<usize>, Error> {
    let (key, count_key) = (key(architecture), format!("{architecture}.block_count"));
    let number = |key: &str| Ok::<_, Error>(file.u32(key)?.unwrap_or(0) as usize);
    let (n_mtp, n_layers) = (number(&key)?, number(&count_key)?);
    match n_layers.checked_sub(n_mtp) {
        Some(first) => Ok(first..n_layers),
        None => Err(Error::Model {
            path: file.path().to_owned(),
            reason: format!(
                "has {key} = {n_mtp}, but {count_key} = {n_layers}: the file is damaged"
            ),
        }),
    }
}

/// The key that tells how many there are.
#[must_use]
pub fn key(architecture: &str) -> String {
    format!("{architecture}.nextn_predict_layers")
}
