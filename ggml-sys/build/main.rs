//! Binds and links the pinned llama.cpp, which `scripts/build-llama.sh` has built beforehand.
//!
//! `locate` finds the tree, `bindings` runs bindgen on its headers, `link` names its libraries.

mod bindings;
mod link;
mod locate;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ggml-sys: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build");
    let tree = locate::find_tree()?;
    let with_llama = std::env::var_os("CARGO_FEATURE_LLAMA").is_some();
    bindings::generate(&tree, with_llama)?;
    link::link(&tree, with_llama)?;
    println!("cargo:rustc-env=STATECELLS_LLAMA_VERSION={}", tree.version()?);
    println!("cargo:rustc-env=STATECELLS_LLAMA_PATCHES={}", tree.patches());
    publish(&tree);
    Ok(())
}

/// Paths for build scripts of dependants, which see them as `DEP_LLAMA_*`.
fn publish(tree: &locate::Tree) {
    println!("cargo:prefix={}", tree.prefix.display());
    for (name, dir) in [("include_llama", "include"), ("include_ggml", "ggml/include")] {
        println!("cargo:{name}={}", tree.source().join(dir).display());
    }
    println!("cargo:lib={}", tree.build().display());
}
