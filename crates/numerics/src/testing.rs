//! What the tests and examples of this crate and of the codecs share.

use format::{MatrixShape, Sidecar};

use crate::{EncodeContext, MatMul, ReferenceMatMul};

/// Numbers from -0.5 to 0.5 (a linear congruential generator), the same for the same seed.
pub fn uniform(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// Weights [d_in, d_out] with a known seed: sums of a few hidden directions plus noise, as learned weights look.
#[must_use]
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

/// A small generator (splitmix64) that depends on no other crate; holds its state.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// About normal, mean 0 and variance 1 (sum of twelve uniforms).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

/// The same products as [`ReferenceMatMul`], on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
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

/// A context with seed 7 whose products are those of [`ReferenceMatMul`].
#[must_use]
pub fn context(importance: Option<&[f32]>) -> EncodeContext<'_> {
    EncodeContext { mul_mat: &ReferenceMatMul, importance, seed: 7, progress: &() }
}

/// Runs `f` on a pool of `n` threads.
///
/// # Panics
/// If the system gives no threads.
pub fn on_threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool").install(f)
}

/// Checks that every stored number is finite.
///
/// # Panics
/// If one is not.
pub fn assert_finite(sidecars: &[Sidecar]) {
    for sidecar in sidecars {
        if let Some(values) = sidecar.to_floats() {
            assert!(values.iter().all(|v| v.is_finite()), "{}", sidecar.spec.suffix);
        }
    }
}

/// The little-endian floats of a file with these bytes; what is no whole one at the end is left out.
#[must_use]
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
