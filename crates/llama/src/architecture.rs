//! Which architectures llama.cpp knows.

use std::io::Write;

use ggml::gguf::GgufWriter;

use crate::{Backend, LlamaError, Model, ModelParams};

/// How llama.cpp begins when it does not know one.
const UNKNOWN: &str = "unknown model architecture";

/// Whether the linked llama.cpp knows the architecture `name` (`general.architecture`).
///
/// It has no function for that, so it is asked to load a file that says nothing else: whatever it misses then, it has
/// looked up the architecture first. `true` where it cannot be asked, for want of a temporary file.
#[must_use]
pub fn knows_architecture(name: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", name).map_err(std::io::Error::other)?;
        let mut file = tempfile::NamedTempFile::new()?;
        writer.write(&mut file, |_, _| Ok(())).map_err(std::io::Error::other)?;
        file.flush()?;
        let params = ModelParams { vocab_only: true, ..ModelParams::default() };
        Ok(match Model::load(Backend::init(), file.path(), &params) {
            Err(LlamaError::Load { reason, .. }) => !reason.contains(UNKNOWN),
            _ => true,
        })
    };
    ask().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_names_are_told_apart() {
        for name in ["llama", "qwen3", "gemma2", "phi3", "arcee", "deepseek2"] {
            assert!(knows_architecture(name), "{name}");
        }
        for name in ["", "Llama", "llama-of-tomorrow", "a'b"] {
            assert!(!knows_architecture(name), "{name}");
        }
    }
}
