//! How far the outputs of two models are apart, and the gradient of that.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::TuningError;
use crate::layer::linear;

/// Tokens whose logits are in memory at a time.
pub(crate) const TOKENS: usize = 256;

/// Kullback-Leibler divergence of the next token's distribution, summed over tokens in nats, and its gradient with
/// respect to `student`.
///
/// # Shapes
/// `teacher`, `student`: (tokens, n_embd), the hidden states after the last norm; `output`: (vocabulary, n_embd).
pub(crate) fn divergence(
    teacher: &Tensor,
    student: &Tensor,
    output: &Tensor,
    want_gradient: bool,
) -> Result<(f64, Option<Tensor>), TuningError> {
    let n = student.dim(0)?;
    let (mut sum, mut gradients) = (0.0, Vec::new());
    for start in (0..n).step_by(TOKENS) {
        let len = TOKENS.min(n - start);
        let logits =
            |x: &Tensor| linear(&x.narrow(0, start, len)?, output)?.flatten_all()?.to_vec1();
        let (p, mut q): (Vec<f32>, Vec<f32>) = (logits(teacher)?, logits(student)?);
        let width = q.len() / len;
        let rows = q.par_chunks_mut(width).zip(p.par_chunks(width));
        let losses: Vec<f64> = rows.map(|(q, p)| row_divergence(p, q)).collect();
        sum += losses.iter().sum::<f64>();
        if want_gradient {
            let difference = Tensor::from_vec(q, (len, width), &Device::Cpu)?;
            gradients.push(difference.matmul(output)?);
        }
    }
    let gradient = want_gradient.then(|| Tensor::cat(&gradients, 0)).transpose()?;
    Ok((sum, gradient))
}

/// sum p ln(p / q) for logits `p` and `q`; leaves softmax(q) - softmax(p) in `q`.
fn row_divergence(p: &[f32], q: &mut [f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|v| f64::from((v - largest).exp())).sum();
        f64::from(largest) + sum.ln()
    };
    let (log_p, log_q) = (log_sum(p) as f32, log_sum(q) as f32);
    let mut loss = 0.0;
    for (q, p) in q.iter_mut().zip(p) {
        let (ln_p, ln_q) = (p - log_p, *q - log_q);
        let (p, q_) = (ln_p.exp(), ln_q.exp());
        loss += f64::from(p * (ln_p - ln_q));
        *q = q_ - p;
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: (usize, usize), seed: f32) -> Tensor {
        let values: Vec<f32> =
            (0..shape.0 * shape.1).map(|i| (i as f32 * 3.77 + seed).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_gradient_is_that_of_the_divergence() {
        let (teacher, student) = (tensor((3, 4), 0.0), tensor((3, 4), 1.0));
        let output = tensor((7, 4), 2.0);
        let value = |s: &Tensor| divergence(&teacher, s, &output, false).unwrap().0;
        let (at, gradient) = divergence(&teacher, &student, &output, true).unwrap();
        assert!(at > 0.1 && at == value(&student));
        let gradient = gradient.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = student.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..values.len() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                value(&Tensor::from_vec(values, (3, 4), &Device::Cpu).unwrap())
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 2e-3, "{slope} {}", gradient[i]);
        }
    }

    #[test]
    fn equal_models_do_not_diverge_and_chunks_do_not_matter() {
        let (many, output) = (tensor((TOKENS + 3, 4), 0.5), tensor((5, 4), 2.0));
        assert!(divergence(&many, &many, &output, false).unwrap().0.abs() < 1e-6);
        let other = tensor((TOKENS + 3, 4), 0.9);
        let (whole, gradient) = divergence(&many, &other, &output, true).unwrap();
        assert_eq!(gradient.unwrap().dims(), [TOKENS + 3, 4]);
        let part = |start, len| {
            let (a, b) =
                (many.narrow(0, start, len).unwrap(), other.narrow(0, start, len).unwrap());
            divergence(&a, &b, &output, false).unwrap().0
        };
        assert!((whole - part(0, TOKENS) - part(TOKENS, 3)).abs() < 1e-6 * whole);
    }
}
