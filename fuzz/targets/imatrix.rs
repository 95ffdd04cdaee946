//! Any bytes as an importance matrix: the values of every weight are finite and not negative, or refused.
#![no_main]

use ggml::imatrix::Imatrix;
use libfuzzer_sys::fuzz_target;

#[path = "file.rs"]
mod file;

fuzz_target!(|data: &[u8]| {
    let Ok(imatrix) = Imatrix::open(file::of(data)) else { return };
    let _ = imatrix.datasets();
    for (target, n) in [("gate", 32), ("up", 32), ("down", 64), ("up", 1), ("up", usize::MAX)] {
        let Ok(values) = imatrix.importance(&format!("blk.0.ffn_{target}.weight"), n) else { continue };
        assert_eq!(values.len(), n);
        assert!(values.iter().all(|v| v.is_finite() && *v >= 0.0));
    }
});
