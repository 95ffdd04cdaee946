//! What of a machine decides about the last bits of what is computed on it.
//!
//! The order of every sum is fixed for any number of threads, but not for any processor: the libraries that multiply
//! matrices choose their kernels by its instructions, and the C library its elementary functions.

/// Instruction sets by which faer, gemm and the C library choose, in the order in which they came to be.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let sets = [
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    sets.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    let sets = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    sets.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// How this machine computes: `x86_64 avx avx2 fma f16c; ggml for avx avx2 fma f16c; glibc 2.36`, and what else of it
/// the method says to depend on (`further`). The same text means the same bytes from the same input.
pub(crate) fn arithmetic(further: Option<String>) -> String {
    let listed = |first: &str, sets: &[&str]| {
        [first].iter().chain(sets).copied().collect::<Vec<_>>().join(" ")
    };
    let mut parts = vec![
        listed(std::env::consts::ARCH, &instruction_sets()),
        listed("ggml for", &ggml::compiled_sets()),
    ];
    parts.extend(c_library());
    parts.extend(further);
    parts.join("; ")
}

/// Name and version of the C library, where it tells.
fn c_library() -> Option<String> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: no preconditions; the string is static and ends in NUL.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        Some(format!("glibc {}", version.to_string_lossy()))
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_in_one_line_that_stays() {
        let text = arithmetic(None);
        assert!(text.starts_with(std::env::consts::ARCH) && text.contains("; ggml for"), "{text}");
        assert_eq!(text, arithmetic(None));
        assert_eq!(arithmetic(Some("cache of 1 B".to_owned())), format!("{text}; cache of 1 B"));
    }
}
