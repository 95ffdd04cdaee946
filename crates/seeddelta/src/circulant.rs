//! The circulant base and its product by FFT.

use std::sync::Arc;

use codec::MatrixShape;
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use crate::fit::Weights;

/// `W0[r, i] = c[(r - i) mod n]`, n = max(d_in, d_out).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Circulant {
    pub(crate) shape: MatrixShape,
    /// `[n]`, first column of the n x n matrix.
    pub(crate) column: Vec<f32>,
}

impl Circulant {
    /// Nearest circulant: the spaces `r - i = t (mod n)` are orthogonal and each is one-dimensional, so
    /// `c[t] = sum g_r h_i w[r, i] / sum g_r^2 h_i` over the entries of W with that difference.
    pub(crate) fn fit(target: &[f32], shape: MatrixShape, weights: &Weights<'_>) -> Self {
        let n = shape.d_in.max(shape.d_out);
        let mut means = vec![weights.mean(); n];
        for (row, w) in target.chunks(shape.d_in).enumerate() {
            for (i, &w) in w.iter().enumerate() {
                means[(row + n - i) % n].add(row, i, w);
            }
        }
        Self { shape, column: means.iter().map(|m| m.value()).collect() }
    }

    pub(crate) fn add_row(&self, row: usize, gain: f32, out: &mut [f32]) {
        let n = self.column.len();
        for (i, out) in out.iter_mut().enumerate() {
            *out += gain * self.column[(row + n - i) % n];
        }
    }
}

/// A circulant with its spectrum, ready to be applied in O(n log n).
pub(crate) struct CirculantFft {
    shape: MatrixShape,
    /// DFT of the first column, divided by n.
    spectrum: Vec<Complex<f32>>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

impl CirculantFft {
    pub(crate) fn new(circulant: &Circulant) -> Self {
        let n = circulant.column.len();
        let mut planner = RealFftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(n), planner.plan_fft_inverse(n));
        let scale = 1.0 / n as f32;
        let mut column: Vec<f32> = circulant.column.iter().map(|c| c * scale).collect();
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut column, &mut spectrum).expect("buffers have the planned lengths");
        Self { shape: circulant.shape, spectrum, forward, inverse }
    }

    /// Adds the product with `x` `[d_in]`, padded to n, cut to d_out: a circular convolution.
    pub(crate) fn add_product(&self, x: &[f32], y: &mut [f32]) {
        let mut time = self.forward.make_input_vec();
        time[..self.shape.d_in].copy_from_slice(x);
        let mut freq = self.forward.make_output_vec();
        self.forward.process(&mut time, &mut freq).expect("buffers have the planned lengths");
        for (f, c) in freq.iter_mut().zip(&self.spectrum) {
            *f *= c;
        }
        // The inverse only fails on imaginary parts at the ends, which two real signals do not have,
        // and then still computes: NaN inputs come out as NaN.
        let _ = self.inverse.process(&mut freq, &mut time);
        for (y, t) in y.iter_mut().zip(&time) {
            *y += t;
        }
    }
}
