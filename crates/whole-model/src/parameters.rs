//! What is tuned of one matrix.

use candle_core::{Device, Result, Var};
use numerics::coo::Coo;
use sections::SectionsParts;

use crate::adam::Adam;

/// Atoms, row scales and exact weights of one matrix on their way to better values.
pub(crate) struct Parameters {
    /// Without its exact weights, whose values are kept in full precision beside it.
    parts: SectionsParts,
    outliers: Option<Coo>,
    exact: Vec<f32>,
    adams: [Adam; 3],
}

impl Parameters {
    pub(crate) fn new(mut parts: SectionsParts) -> Self {
        let outliers = parts.outliers.take();
        let exact: Vec<f32> =
            outliers.iter().flat_map(|o| o.values().iter().map(|v| v.to_f32())).collect();
        let adams =
            [parts.atoms.as_flattened().len(), parts.row_scale.len(), exact.len()].map(Adam::new);
        Self { parts, outliers, exact, adams }
    }

    /// The dense matrix as a variable, (outputs, inputs).
    pub(crate) fn weight(&self) -> Result<Var> {
        let mut dense = self.parts.decode();
        for (position, value) in self.positions().iter().zip(&self.exact) {
            dense[*position] += value;
        }
        let shape = self.parts.layout.shape;
        Var::from_vec(dense, (shape.d_out, shape.d_in), &Device::Cpu)
    }

    /// One step against `dense`, the gradient with respect to the dense matrix, [d_in, d_out], by about `rate` of each
    /// value's size.
    pub(crate) fn step(&mut self, dense: &[f32], rate: f32) {
        let gradient = self.parts.gradient(dense);
        let by_exact: Vec<f32> = self.positions().iter().map(|p| dense[*p]).collect();
        let [atoms, scales, exact] = &mut self.adams;
        let values = self.parts.atoms.as_flattened_mut();
        let size = root_mean_square(values);
        atoms.step(values, gradient.atoms.as_flattened(), rate * size);
        // Scales change by factors, so that large and small rows learn alike.
        let mut logs = vec![0.0; gradient.row_scale.len()];
        let by_log: Vec<f32> =
            gradient.row_scale.iter().zip(&self.parts.row_scale).map(|(g, s)| g * s).collect();
        scales.step(&mut logs, &by_log, rate);
        self.parts.row_scale.iter_mut().zip(&logs).for_each(|(s, l)| *s *= l.exp());
        let size = root_mean_square(&self.exact);
        exact.step(&mut self.exact, &by_exact, rate * size);
    }

    /// The code as it is now.
    pub(crate) fn into_parts(self) -> SectionsParts {
        let mut outliers = self.outliers;
        if let Some(coo) = &mut outliers {
            coo.set_values(&self.exact);
        }
        SectionsParts { outliers, ..self.parts }
    }

    fn positions(&self) -> &[usize] {
        self.outliers.as_ref().map_or(&[], Coo::positions)
    }
}

fn root_mean_square(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    (sum / values.len().max(1) as f64).sqrt() as f32
}
