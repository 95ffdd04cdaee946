//! Programs and models that tests need but cannot make; without them a test is skipped, and says so.

use std::env;
use std::path::{Path, PathBuf};

/// A program of llama.cpp in the directory that STATECELLS_BIN_DIR names, or in `bin`.
pub fn program(name: &str) -> Option<PathBuf> {
    find("STATECELLS_BIN_DIR", "bin", name)
}

/// SmolLM2 in the directory that STATECELLS_MODELS_DIR names, or in `models`.
pub fn model() -> Option<PathBuf> {
    find("STATECELLS_MODELS_DIR", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn find(var: &str, default: &str, name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = env::var_os(var).map_or_else(|| root.join(default), PathBuf::from);
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no {} (set {var})", path.display());
    None
}
