//! The product with a circulant by FFT.

use std::sync::Arc;

use format::MatrixShape;
use format::seeddelta::Circulant;
use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

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
