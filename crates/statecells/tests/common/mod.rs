//! Matrices, contexts and products shared by the tests.
#![allow(dead_code)] // every test program uses its own part

use codec::{EncodeContext, MatMul, ReferenceMatMul};
use format::{MatrixShape, Sidecar};

/// Weights with a known seed: sums of a few hidden directions plus noise, as learned weights look.
pub fn weights(shape: MatrixShape, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let hidden: Vec<f32> = (0..shape.d_in * 8).map(|_| random.normal()).collect();
    let mut out = Vec::with_capacity(shape.n_weights());
    for _ in 0..shape.d_out {
        let mix: Vec<f32> = (0..8).map(|_| random.normal()).collect();
        for i in 0..shape.d_in {
            let signal: f32 = (0..8).map(|j| mix[j] * hidden[j * shape.d_in + i]).sum();
            out.push(0.02 * (signal + random.normal()));
        }
    }
    out
}

/// A small generator (splitmix64) that does not depend on the crate under test.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal, mean 0 and variance 1 (sum of twelve uniforms).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// The same products as [`ReferenceMatMul`], on the calling thread.
pub struct SerialMatMul;

impl MatMul for SerialMatMul {
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        let m = a.len() / k;
        for (out, b) in out.chunks_mut(m).zip(b.chunks(k)) {
            for (out, a) in out.iter_mut().zip(a.chunks(k)) {
                *out = a.iter().zip(b).map(|(a, b)| a * b).sum();
            }
        }
    }
}

pub fn context(importance: Option<&[f32]>) -> EncodeContext<'_> {
    EncodeContext { mul_mat: &ReferenceMatMul, importance, seed: 7, progress: &() }
}

/// Runs `f` on a pool of `n` threads.
pub fn on_threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool").install(f)
}

/// Every stored number is finite.
pub fn assert_finite(sidecars: &[Sidecar]) {
    for sidecar in sidecars {
        if let Some(values) = sidecar.to_floats() {
            assert!(values.iter().all(|v| v.is_finite()), "{}", sidecar.spec.suffix);
        }
    }
}
