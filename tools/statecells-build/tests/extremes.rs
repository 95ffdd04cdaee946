//! Weights at the ends of F32's range: what is written is finite all the same, and the gap says what it is worth.

mod common;

use common::{Fixture, succeeds};
use fixtures::models::Model;
use ggml::gguf::GgufFile;

/// Sidecars that hold numbers, not codes or places.
const NUMBERS: [&str; 4] = [".dict", ".vals", ".row_scale", ".outlier_val"];

#[test]
fn nothing_overflows_in_what_is_written() {
    // F16 ends at 65504 and 6e-8; the weights are around 0.1 times this.
    for scale in [1e35, 1e8, 1e-8, 1e-30, 1e-44] {
        let fixture = Fixture::small();
        let stretch = |name: &str, weights: &mut [f32]| {
            if name.contains(".ffn_") && !name.contains("norm") {
                weights.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
                // One row that is far from the others, and one of zeros.
                weights[..64]
                    .iter_mut()
                    .for_each(|w| *w = (f64::from(*w) * 100.0).clamp(-3e38, 3e38) as f32);
                weights[64..128].fill(0.0);
            }
        };
        Model::default().write_with(&fixture.path("model.gguf"), |_| Ok(()), stretch).unwrap();
        for scheme in [
            "--scheme sections --no-calib --S 4 --outliers 0.01",
            "--scheme sign",
            "--row-scale",
            "--vals",
        ] {
            let flags = format!("-i model.gguf -o out.gguf --force {scheme}");
            succeeds(&mut fixture.quick(&flags));
            let file = GgufFile::open(&fixture.path("out.gguf")).unwrap();
            let mut n_numbers = 0;
            for tensor in file.tensors() {
                if NUMBERS.iter().any(|suffix| tensor.name().ends_with(suffix)) {
                    let values = file.to_f32(tensor).unwrap();
                    let finite = values.iter().all(|v| v.is_finite());
                    assert!(finite, "{scale:e} {scheme}: {}", tensor.name());
                    n_numbers += 1;
                }
            }
            assert!(n_numbers >= 6, "{scheme}");
            let gap = file.f32("statecells.blk.0.ffn_up.gap").unwrap().unwrap();
            assert!((0.0..=1.001).contains(&gap), "{scale:e} {scheme}: {gap}");
        }
    }
}
