//! `--version` of every program tells what it was made from.

use end_to_end::programs::Run;

/// Programs of the workspace that link llama.cpp.
const PROGRAMS: [&str; 8] = [
    "seeddelta-build",
    "seeddelta-eval",
    "statecells-bench",
    "statecells-build",
    "statecells-calib",
    "statecells-eval",
    "statecells-inspect",
    "tiny-transformer",
];

/// `0.1.0 (llama.cpp V (build B, commit C), ggml G, patches P)` after the program's name.
#[test]
fn programs_name_their_version_llama_cpp_and_the_patches() {
    let mut lines = Vec::new();
    for name in PROGRAMS {
        let text = Run::of(name, ["--version"]).ok().text();
        let line = text.trim_end().strip_prefix(&format!("{name} ")).expect("the program's name");
        let (version, rest) = line.split_once(" (llama.cpp ").unwrap_or_else(|| panic!("{text}"));
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{text}");
        let (_, patches) = rest.rsplit_once(", patches ").unwrap_or_else(|| panic!("{text}"));
        let digits = patches.strip_suffix(')').unwrap_or_else(|| panic!("{text}"));
        assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
        lines.push(line.to_owned());
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "the programs were built from different things: {lines:#?}");
    let toy = Run::of("seeddelta-toy", ["--version"]).ok().text();
    assert!(toy.contains(env!("CARGO_PKG_VERSION")) && toy.contains("no llama.cpp"), "{toy}");
}
