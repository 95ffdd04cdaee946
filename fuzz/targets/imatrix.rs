//! Any bytes as an importance matrix: the values of every weight are finite and not negative, or refused.
#![no_main]

use ggml::imatrix::Imatrix;
use libfuzzer_sys::fuzz_target;

#[path = "file.rs"]
mod file;

fuzz_target!(|data: &[u8]| {
    let Ok(imatrix) = Imatrix::open(file::of(data)) else { return };
    let _ = imatrix.datasets();
    for (target, n, n_experts) in [
        ("gate", 32, None),
        ("up", 32, Some(2)),
        ("down", 64, None),
        ("down", 32, Some(2)),
        ("up", 1, None),
        ("up", usize::MAX, Some(usize::MAX)),
    ] {
        let name = format!("blk.0.ffn_{target}.weight");
        if let Some(Ok(experts)) = n_experts.map(|n_experts| imatrix.experts(&name, n, n_experts)) {
            let all = experts.iter().flat_map(|expert| &expert.mean_squares);
            assert!(all.into_iter().all(|v| v.is_finite() && *v >= 0.0));
        }
        let Ok(values) = imatrix.importance(&name, n, n_experts) else { continue };
        assert_eq!(values.len(), n);
        assert!(values.iter().all(|v| v.is_finite() && *v >= 0.0));
    }
});
