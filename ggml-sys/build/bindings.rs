//! Rust declarations from the C headers.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;

use crate::locate::{self, Tree};

const HEADERS: [&str; 6] = [
    "ggml/include/ggml.h",
    "ggml/include/ggml-backend.h",
    "ggml/include/ggml-cpu.h",
    "ggml/include/gguf.h",
    "include/llama.h",
    "src/llama-layers.h",
];

/// Writes `bindings.rs` into cargo's output directory.
pub fn generate(tree: &Tree, with_llama: bool) -> Result<(), String> {
    println!("cargo:rerun-if-changed=wrapper.h");
    for header in HEADERS {
        println!("cargo:rerun-if-changed={}", tree.source().join(header).display());
    }
    locate::provide_libclang();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let builder = builder(tree, with_llama)?;
    // bindgen panics when it cannot load libclang.
    std::panic::catch_unwind(AssertUnwindSafe(|| builder.generate()))
        .map_err(|_| "no libclang; run ./scripts/setup-tools.sh or set LIBCLANG_PATH".to_owned())?
        .map_err(|e| format!("bindgen: {e}"))?
        .write_to_file(out.join("bindings.rs"))
        .map_err(|e| format!("{}: {e}", out.display()))
}

fn builder(tree: &Tree, with_llama: bool) -> Result<bindgen::Builder, String> {
    let source = tree.source();
    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{}", source.join("ggml/include").display()))
        .clang_arg(format!("-I{}", compiler_headers()?))
        // A newer file may hold a value that no Rust enum has: plain constants stay sound.
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .layout_tests(false)
        .derive_default(false)
        .generate_comments(false);
    if with_llama {
        builder = builder
            .clang_arg("-DBIND_LLAMA")
            .clang_args(["include", "src"].map(|f| format!("-I{}", source.join(f).display())));
    }
    for prefix in ["gguf", "ggml", "llama"] {
        builder = builder
            .allowlist_function(format!("{prefix}_.*"))
            .allowlist_type(format!("{prefix}_.*"))
            .allowlist_var(format!("{}_.*", prefix.to_uppercase()));
    }
    Ok(builder)
}

/// The C compiler's own headers (`stddef.h`): the libclang wheel brings none.
fn compiler_headers() -> Result<String, String> {
    println!("cargo:rerun-if-env-changed=CC");
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&cc)
        .arg("-print-file-name=include")
        .output()
        .map_err(|e| format!("C compiler '{cc}': {e}; install one or set CC"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
