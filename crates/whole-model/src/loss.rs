//! How far the outputs of two models are apart, and the gradient of that.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::TuningError;
use crate::output::Output;

/// Tokens whose logits are in memory at a time.
pub(crate) const TOKENS: usize = 256;

/// Kullback-Leibler divergence of the next token's distribution, summed over tokens in nats, and its gradient with
/// respect to `student`.
///
/// # Shapes
/// `teacher`, `student`: (tokens, n_embd), the hidden states after the last norm.
pub(crate) fn divergence(
    teacher: &Tensor,
    student: &Tensor,
    output: &Output<'_>,
    want_gradient: bool,
) -> Result<(f64, Option<Tensor>), TuningError> {
    let n = student.dim(0)?;
    let (mut sum, mut gradients) = (0.0, Vec::new());
    let width = output.n_vocab();
    for start in (0..n).step_by(TOKENS) {
        let some = |x: &Tensor| x.narrow(0, start, TOKENS.min(n - start));
        let [p, mut q] = output.logits([&some(teacher)?, &some(student)?])?;
        let rows = q.par_chunks_mut(width).zip(p.par_chunks(width));
        let losses: Vec<f64> = rows.map(|(q, p)| row_divergence(p, q, output)).collect();
        sum += losses.iter().sum::<f64>();
        if want_gradient {
            gradients.push(output.back(&q)?);
        }
    }
    let gradient = want_gradient.then(|| Tensor::cat(&gradients, 0)).transpose()?;
    Ok((sum, gradient))
}

/// sum p ln(p / q) for logits `p` and `q`; leaves its gradient at what `output` made logits of in `q`:
/// softmax(q) - softmax(p) times their slopes.
fn row_divergence(p: &[f32], q: &mut [f32], output: &Output<'_>) -> f64 {
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
        *q = (q_ - p) * output.slope(*q);
    }
    loss
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use ggml::Type;
    use ggml::gguf::{GgufFile, GgufWriter};

    use super::*;
    use crate::fused::SoftCap;

    /// A file with a matrix of [4, n_vocab].
    struct Matrix {
        _folder: tempfile::TempDir,
        file: GgufFile,
    }

    impl Matrix {
        fn new(n_vocab: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("output.gguf");
            let values = (0..4 * n_vocab).map(|i| (i as f32 * 3.77 + 2.0).sin());
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            let mut writer = GgufWriter::new();
            writer.add_tensor("output.weight", Type::F32, &[4, n_vocab]).unwrap();
            let mut out = std::fs::File::create(&path).unwrap();
            writer.write(&mut out, |_, out| out.write_all(&bytes)).unwrap();
            Self { _folder: folder, file: GgufFile::open(&path).unwrap() }
        }

        fn output(&self, scale: f32, cap: Option<f32>) -> Output<'_> {
            Output::new((&self.file, &self.file.tensors()[0]), Vec::new(), scale, SoftCap(cap))
        }
    }

    fn tensor(shape: (usize, usize), seed: f32) -> Tensor {
        let values: Vec<f32> =
            (0..shape.0 * shape.1).map(|i| (i as f32 * 3.77 + seed).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_gradient_is_that_of_the_divergence() {
        let (teacher, student) = (tensor((3, 4), 0.0), tensor((3, 4), 1.0));
        let matrix = Matrix::new(7);
        let output = matrix.output(1.3, Some(1.5));
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
        let (many, matrix) = (tensor((TOKENS + 3, 4), 0.5), Matrix::new(5));
        let output = matrix.output(1.0, None);
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
