//! Adam on plain slices.

/// Moments of one group of parameters. Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
#[derive(Clone, Debug)]
pub(crate) struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPSILON: f32 = 1e-12;

impl Adam {
    pub(crate) fn new(n: usize) -> Self {
        Self { mean: vec![0.0; n], square: vec![0.0; n], steps: 0 }
    }

    /// Moves `values` against `gradient`, by about `rate` each.
    pub(crate) fn step(&mut self, values: &mut [f32], gradient: &[f32], rate: f32) {
        self.steps += 1;
        let (c1, c2) = (1.0 - BETA1.powi(self.steps), 1.0 - BETA2.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((value, g), (m, s)) in values.iter_mut().zip(gradient).zip(moments) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *s = BETA2 * *s + (1.0 - BETA2) * g * g;
            *value -= rate * (*m / c1) / ((*s / c2).sqrt() + EPSILON);
        }
    }
}
