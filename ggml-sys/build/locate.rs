//! Where the pinned llama.cpp and libclang are.

use std::path::{Path, PathBuf};

/// Environment variable that names the directory with `src` and `build`.
const PREFIX_VAR: &str = "STATECELLS_LLAMA_PREFIX";
/// One-line file, relative to the workspace, that names it otherwise.
const PREFIX_FILE: &str = ".tools/llama-prefix";

/// One-line file in that directory: hash of the source, the patches and the hook's header.
const PATCHES_FILE: &str = "patches-id";

/// The patched source tree and the cmake build tree beside it.
pub struct Tree {
    /// Directory that holds `src` and `build`.
    pub prefix: PathBuf,
}

impl Tree {
    /// The patched source tree.
    pub fn source(&self) -> PathBuf {
        self.prefix.join("src")
    }

    /// The cmake build tree.
    pub fn build(&self) -> PathBuf {
        self.prefix.join("build")
    }

    /// Path of the static library `lib<name>.a` in the build tree.
    pub fn static_library(&self, name: &str) -> Result<PathBuf, String> {
        let file = format!("lib{name}.a");
        ["src", "ggml/src", "ggml/src/ggml-cpu", "bin", "."]
            .iter()
            .map(|dir| self.build().join(dir).join(&file))
            .find(|path| path.is_file())
            .ok_or_else(|| advice(&format!("{file} is not in {}", self.build().display())))
    }

    /// `llama.cpp 0.5.0-dev (build 0, commit unknown), ggml 0.25.3`, as the tree itself says.
    pub fn version(&self) -> Result<String, String> {
        let llama = cmake_version(&self.source().join("CMakeLists.txt"), "LLAMA")?;
        let ggml = cmake_version(&self.source().join("ggml/CMakeLists.txt"), "GGML")?;
        let dev = if self.cache_entry("LLAMA_BUILD_IS_DEV").as_deref() == Some("ON") {
            "-dev"
        } else {
            ""
        };
        Ok(format!("llama.cpp {llama}{dev} ({}), ggml {ggml}", self.stamp()))
    }

    /// Hash of the patches in the tree, as `scripts/build-llama.sh` wrote it down; `unknown` for other trees.
    pub fn patches(&self) -> String {
        let path = self.prefix.join(PATCHES_FILE);
        let Ok(text) = std::fs::read_to_string(&path) else { return "unknown".to_owned() };
        // Only where it is there: a file that is missing counts as changed at every build.
        println!("cargo:rerun-if-changed={}", path.display());
        text.trim().to_owned()
    }

    /// Value of `name` in the cmake cache.
    pub fn cache_entry(&self, name: &str) -> Option<String> {
        let cache = std::fs::read_to_string(self.build().join("CMakeCache.txt")).ok()?;
        let line = cache.lines().find(|l| l.split(':').next() == Some(name))?;
        Some(line.split_once('=')?.1.trim().to_owned())
    }

    /// Build number and commit that cmake wrote down; both are unknown for a tree without git.
    fn stamp(&self) -> String {
        let path = self.build().join("common/build-info.cpp");
        // A file that is missing counts as changed at every build, so only one that is there is named.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if !text.is_empty() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
        let field = |name: &str| {
            let (_, rest) = text.lines().find_map(|l| l.split_once(&format!("{name} = ")))?;
            Some(rest.trim_end_matches(';').trim_matches('"').to_owned())
        };
        let unknown = || "unknown".to_owned();
        let build = field("LLAMA_BUILD_NUMBER").unwrap_or_else(unknown);
        format!("build {build}, commit {}", field("LLAMA_COMMIT").unwrap_or_else(unknown))
    }
}

/// The tree named by the environment or by `.tools/llama-prefix`.
pub fn find_tree() -> Result<Tree, String> {
    let file = workspace_root().join(PREFIX_FILE);
    println!("cargo:rerun-if-env-changed={PREFIX_VAR}");
    let (prefix, named_by) = match std::env::var_os(PREFIX_VAR) {
        Some(value) => (PathBuf::from(value), PREFIX_VAR.to_owned()),
        None => {
            println!("cargo:rerun-if-changed={}", file.display());
            (read_prefix(&file)?, file.display().to_string())
        }
    };
    let tree = Tree { prefix };
    if tree.source().join("ggml/include/gguf.h").is_file() && tree.build().is_dir() {
        return Ok(tree);
    }
    Err(advice(&format!("{} (named by {named_by}) has no src and build", tree.prefix.display())))
}

fn read_prefix(file: &Path) -> Result<PathBuf, String> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        advice(&format!("no llama.cpp: {PREFIX_VAR} is unset, {}: {e}", file.display()))
    })?;
    Ok(PathBuf::from(text.trim()))
}

/// Points libclang's loader at the wheel in `.tools` unless `LIBCLANG_PATH` is set.
pub fn provide_libclang() {
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return;
    }
    let Ok(pythons) = std::fs::read_dir(workspace_root().join(".tools/venv/lib")) else { return };
    let mut dirs: Vec<_> = pythons
        .flatten()
        .map(|entry| entry.path().join("site-packages/clang/native"))
        .filter(|dir| dir.is_dir())
        .collect();
    dirs.sort();
    if let Some(dir) = dirs.last() {
        // SAFETY: this program has one thread so far, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("LIBCLANG_PATH", dir) };
    }
}

fn cmake_version(path: &Path, prefix: &str) -> Result<String, String> {
    println!("cargo:rerun-if-changed={}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let part = |name: &str| {
        let start = format!("set({prefix}_VERSION_{name} ");
        let line = text.lines().find_map(|l| l.trim().strip_prefix(&start));
        line.map(|l| l.trim_end_matches(')').trim().to_owned())
            .ok_or_else(|| format!("{}: no {prefix}_VERSION_{name}", path.display()))
    };
    Ok([part("MAJOR")?, part("MINOR")?, part("PATCH")?].join("."))
}

fn workspace_root() -> PathBuf {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    manifest.parent().expect("ggml-sys lies in the workspace").to_owned()
}

fn advice(problem: &str) -> String {
    format!("{problem}; run ./scripts/build-llama.sh")
}
