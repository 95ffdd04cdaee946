//! What the examples share: a product that needs nothing but rayon, and raw files.

use codec::MatMul;
use rayon::prelude::*;

pub type Failure = Box<dyn std::error::Error>;

/// Dot products over rayon's threads, in eight chains each.
pub struct Lanes;

impl MatMul for Lanes {
    fn mul_mat(&self, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
        out.par_chunks_mut(a.len() / k).zip(b.par_chunks(k)).for_each(|(out, b)| {
            for (out, a) in out.iter_mut().zip(a.chunks(k)) {
                let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
                let mut sums = [0.0f32; 8];
                for (a, b) in a.iter().zip(b) {
                    (0..8).for_each(|i| sums[i] += a[i] * b[i]);
                }
                let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
                *out = sums.iter().sum::<f32>() + rest;
            }
        });
    }
}

/// The little-endian floats in `file`.
pub fn read_floats(file: &str) -> Result<Vec<f32>, Failure> {
    let bytes = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}
