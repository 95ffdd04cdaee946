//! Which libraries dependants link.

use crate::locate::Tree;

/// Libraries of ggml, each before what it needs.
const GGML: [&str; 3] = ["ggml", "ggml-cpu", "ggml-base"];

/// Links the static libraries and what they need from the system.
pub fn link(tree: &Tree, with_llama: bool) -> Result<(), String> {
    let llama: &[&str] = if with_llama { &["llama"] } else { &[] };
    for name in llama.iter().chain(&GGML) {
        let path = tree.static_library(name)?;
        let dir = path.parent().expect("a library lies in a directory");
        println!("cargo:rerun-if-changed={}", path.display());
        println!("cargo:rustc-link-search=native={}", dir.display());
        println!("cargo:rustc-link-lib=static:-bundle={name}");
    }
    for name in system_libraries(tree) {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    Ok(())
}

/// The C++ run time, the OpenMP run time that cmake found (if it was used), maths and threads.
fn system_libraries(tree: &Tree) -> Vec<String> {
    println!("cargo:rerun-if-changed={}", tree.build().join("CMakeCache.txt").display());
    let apple = std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|v| v == "apple");
    let mut names = vec![if apple { "c++" } else { "stdc++" }.to_owned()];
    if tree.cache_entry("GGML_OPENMP_ENABLED").as_deref() == Some("ON") {
        let openmp = tree.cache_entry("OpenMP_CXX_LIB_NAMES").unwrap_or_default();
        names.extend(openmp.split(';').filter(|n| !n.is_empty()).map(str::to_owned));
    }
    for name in ["pthread", "m"] {
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}
