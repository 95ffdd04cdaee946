//! The FFN of a mixture of experts, as llama.cpp computes that of mixtral: softmax over all experts, the largest of them, weights
//! that add up to 1.

use candle_core::{D, Result, Tensor, Var};

use crate::tiny::model::GLU;

/// What is added to the loss for each layer where experts are used unevenly.
const BALANCE: f64 = 0.01;

/// One expert's matrices, candle shape (inputs, outputs).
pub(super) struct Expert {
    pub(super) gate: Var,
    pub(super) up: Var,
    pub(super) down: Var,
}

/// All experts of a layer and the router, (inputs, experts).
pub(super) struct Experts {
    pub(super) router: Var,
    pub(super) all: Vec<Expert>,
    pub(super) n_used: usize,
}

impl Experts {
    /// What the FFN makes of `h`, (tokens, inputs), and what is to be added to the mean loss of a token.
    pub(super) fn forward(&self, h: &Tensor) -> Result<(Tensor, Tensor)> {
        let logits = h.matmul(&self.router)?;
        let top = logits.max_keepdim(D::Minus1)?;
        let exp = logits.broadcast_sub(&top.detach())?.exp()?;
        let probabilities = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let users = self.users(&probabilities)?;
        let mask = mask(&users, &probabilities)?;
        let used = (&probabilities * &mask)?;
        let weights = used.broadcast_div(&used.sum_keepdim(D::Minus1)?)?;
        let mut y = h.zeros_like()?;
        for (e, (expert, users)) in self.all.iter().zip(&users).enumerate() {
            if users.is_empty() {
                continue;
            }
            let index = Tensor::from_slice(users, users.len(), h.device())?;
            let h = h.index_select(&index, 0)?;
            let inner = h.matmul(&expert.gate)?.apply_op2(&h.matmul(&expert.up)?, GLU)?;
            let weight = weights.narrow(1, e, 1)?.contiguous()?.index_select(&index, 0)?;
            y = y.index_add(&index, &inner.matmul(&expert.down)?.broadcast_mul(&weight)?, 0)?;
        }
        Ok((y, balance(&probabilities, &mask, self.n_used)?))
    }

    /// The tokens of every expert; of equal probabilities the first counts.
    fn users(&self, probabilities: &Tensor) -> Result<Vec<Vec<u32>>> {
        let mut users = vec![Vec::new(); self.all.len()];
        for (token, row) in probabilities.to_vec2::<f32>()?.iter().enumerate() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order[..self.n_used].iter().for_each(|e| users[*e].push(token as u32));
        }
        Ok(users)
    }
}

/// 1 where a token uses an expert, else 0.
fn mask(users: &[Vec<u32>], like: &Tensor) -> Result<Tensor> {
    let (n_tokens, n_experts) = like.dims2()?;
    let mut mask = vec![0.0f32; n_tokens * n_experts];
    for (e, tokens) in users.iter().enumerate() {
        tokens.iter().for_each(|t| mask[*t as usize * n_experts + e] = 1.0);
    }
    Tensor::from_vec(mask, (n_tokens, n_experts), like.device())
}

/// Least where all experts are used alike (Switch Transformers, arXiv 2101.03961, equation 4): share of the tokens that an expert
/// gets times its mean probability, summed over the experts, times their number.
fn balance(probabilities: &Tensor, mask: &Tensor, n_used: usize) -> Result<Tensor> {
    let n_experts = probabilities.dims2()?.1 as f64;
    let shares = (mask.mean(0)? / n_used as f64)?;
    (probabilities.mean(0)? * shares)?.sum_all()? * (BALANCE * n_experts)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn var(values: &[f32], dims: (usize, usize)) -> Var {
        Var::from_tensor(&Tensor::from_slice(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    fn experts(n_used: usize) -> Experts {
        let value = |seed: usize| -> Vec<f32> {
            (0..4).map(|i| ((seed * 7 + i * 3) % 11) as f32 / 11.0 - 0.4).collect()
        };
        let expert = |e: usize| Expert {
            gate: var(&value(e), (2, 2)),
            up: var(&value(e + 3), (2, 2)),
            down: var(&value(e + 5), (2, 2)),
        };
        let router = var(&[0.1, 0.9, -0.3, 0.6, -0.8, 0.2], (2, 3));
        Experts { router, all: (0..3).map(expert).collect(), n_used }
    }

    /// Every token by itself, in F64.
    #[test]
    fn tokens_get_the_weighted_sum_of_their_experts() {
        let x = [[0.5f32, -1.0], [1.5, 0.25], [-0.7, -0.2]];
        for n_used in [1, 2, 3] {
            let experts = experts(n_used);
            let h = Tensor::new(&x, &Device::Cpu).unwrap();
            let y = experts.forward(&h).unwrap().0.to_vec2::<f32>().unwrap();
            let product = |x: &[f64], w: &Var| -> Vec<f64> {
                let w = w.to_vec2::<f32>().unwrap();
                (0..w[0].len()).map(|j| (0..2).map(|i| x[i] * f64::from(w[i][j])).sum()).collect()
            };
            for (x, y) in x.iter().zip(y) {
                let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                let p: Vec<f64> = product(&x, &experts.router).iter().map(|v| v.exp()).collect();
                let mut order = [0, 1, 2];
                order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
                let sum: f64 = order[..n_used].iter().map(|e| p[*e]).sum();
                let mut expected = [0.0; 2];
                for e in &order[..n_used] {
                    let expert = &experts.all[*e];
                    let (gate, up) = (product(&x, &expert.gate), product(&x, &expert.up));
                    let inner: Vec<f64> =
                        gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                    let down = product(&inner, &expert.down);
                    (0..2).for_each(|i| expected[i] += p[*e] / sum * down[i]);
                }
                for (y, expected) in y.iter().zip(expected) {
                    assert!((f64::from(*y) - expected).abs() < 1e-5, "{y} {expected}");
                }
            }
        }
    }

    /// Gradients of everything that learns against differences.
    #[test]
    fn gradients_are_those_of_differences() {
        let experts = experts(2);
        let h = Tensor::new(&[[0.5f32, -1.0], [1.5, 0.25], [-0.7, -0.2]], &Device::Cpu).unwrap();
        let loss = || {
            let (y, balance) = experts.forward(&h).unwrap();
            (y.sqr().unwrap().sum_all().unwrap() + balance).unwrap()
        };
        let grads = loss().backward().unwrap();
        let first = &experts.all[1];
        for var in [&experts.router, &first.gate, &first.up, &first.down] {
            let grad = grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for i in 0..values.len() {
                let with = |step: f32| {
                    let mut moved = values.clone();
                    moved[i] += step;
                    let moved = Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap();
                    var.set(&moved).unwrap();
                    loss().to_scalar::<f32>().unwrap()
                };
                let difference = (with(1e-3) - with(-1e-3)) / 2e-3;
                with(0.0);
                assert!((difference - grad[i]).abs() < 3e-3, "{difference} {}", grad[i]);
            }
        }
    }

    #[test]
    fn uneven_use_costs() {
        let probabilities = |rows: &[[f32; 2]; 2]| Tensor::new(rows, &Device::Cpu).unwrap();
        let cost = |rows: &[[f32; 2]; 2], used: &[[f32; 2]; 2]| {
            let cost = balance(&probabilities(rows), &probabilities(used), 1).unwrap();
            cost.to_scalar::<f32>().unwrap()
        };
        let even = cost(&[[0.9, 0.1], [0.1, 0.9]], &[[1.0, 0.0], [0.0, 1.0]]);
        let uneven = cost(&[[0.9, 0.1], [0.9, 0.1]], &[[1.0, 0.0], [1.0, 0.0]]);
        assert!((even - 0.01).abs() < 1e-6 && uneven > 1.5 * even, "{even} {uneven}");
    }
}
