//! Causal attention as one differentiable operation: candle's composition of single operations would take
//! most of the time of a step in memory traffic.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::fused::{SoftCap, floats, from_vec, to_vec};

/// softmax(Q K^T scale) V with later positions hidden; several query heads may share a key head.
///
/// # Shapes
/// In candle's order, outermost first: queries (heads, tokens, d), keys and values (heads_kv, tokens, d), all
/// contiguous -> (heads, tokens, d).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Of the scores.
    pub(crate) cap: SoftCap,
    /// How many tokens are seen, the own one among them; all before it where there is none.
    pub(crate) window: Option<usize>,
}

impl Attention {
    /// What token `i` sees of the tokens.
    fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let first = self.window.map_or(0, |n| (i + 1).saturating_sub(n));
        first..i + 1
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    heads_kv: usize,
    tokens: usize,
    d: usize,
    attention: Attention,
}

impl Sizes {
    fn of(q: &Shape, k: &Shape, attention: Attention) -> Result<Self> {
        let ((heads, tokens, d), (heads_kv, _, _)) = (q.dims3()?, k.dims3()?);
        Ok(Self { heads, heads_kv, tokens, d, attention })
    }

    /// Values of one head.
    fn head(self) -> usize {
        self.tokens * self.d
    }

    /// The part of keys or values that query head `h` uses.
    fn shared(self, values: &[f32], h: usize) -> &[f32] {
        let start = h / (self.heads / self.heads_kv) * self.head();
        &values[start..start + self.head()]
    }
}

/// `out = alpha * a * b` for row-major matrices; a `true` transposes.
fn product(
    out: &mut [f32],
    (rows, columns): (usize, usize),
    (a, a_t): (&[f32], bool),
    (b, b_t): (&[f32], bool),
    alpha: f32,
) {
    let inner = a.len() / rows;
    let view = |m, r, c, transposed| match transposed {
        false => MatRef::from_row_major_slice(m, r, c),
        true => MatRef::from_row_major_slice(m, c, r).transpose(),
    };
    let (a, b) = (view(a, rows, inner, a_t), view(b, inner, columns, b_t));
    let out = MatMut::from_row_major_slice_mut(out, rows, columns);
    matmul(out, Accum::Replace, a, b, alpha, Par::Seq);
}

/// Scores of one head under their cap, (tokens, tokens).
fn scores(q: &[f32], k: &[f32], sizes: Sizes) -> Vec<f32> {
    let n = sizes.tokens;
    let mut scores = vec![0.0; n * n];
    product(&mut scores, (n, n), (q, false), (k, true), sizes.attention.scale);
    scores.iter_mut().for_each(|score| *score = sizes.attention.cap.of(*score));
    scores
}

/// Attention weights of one head, (tokens, tokens), from its scores.
fn weights(mut scores: Vec<f32>, sizes: Sizes) -> Vec<f32> {
    for (i, row) in scores.chunks_mut(sizes.tokens).enumerate() {
        let seen = sizes.attention.seen(i);
        let (before, rest) = row.split_at_mut(seen.start);
        let (seen, later) = rest.split_at_mut(seen.len());
        let largest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        seen.iter_mut().for_each(|v| *v = (*v - largest).exp());
        let sum: f32 = seen.iter().sum();
        seen.iter_mut().for_each(|v| *v /= sum);
        before.fill(0.0);
        later.fill(0.0);
    }
    scores
}

/// Gradients of one head's queries, keys and values.
fn head_gradients([q, k, v, grad]: [&[f32]; 4], sizes: Sizes, [dq, dk, dv]: [&mut [f32]; 3]) {
    let (n, d, attention) = (sizes.tokens, sizes.d, sizes.attention);
    let scores = scores(q, k, sizes);
    let p = weights(scores.clone(), sizes);
    product(dv, (n, d), (&p, true), (grad, false), 1.0);
    let mut ds = vec![0.0; n * n];
    product(&mut ds, (n, n), (grad, false), (v, true), 1.0);
    for ((ds, p), scores) in ds.chunks_mut(n).zip(p.chunks(n)).zip(scores.chunks(n)) {
        let mean: f32 = ds.iter().zip(p).map(|(ds, p)| ds * p).sum();
        for ((ds, p), score) in ds.iter_mut().zip(p).zip(scores) {
            *ds = p * (*ds - mean) * attention.cap.slope(*score);
        }
    }
    product(dq, (n, d), (&ds, false), (k, false), attention.scale);
    product(dk, (n, d), (&ds, true), (q, false), attention.scale);
}

/// Sums the gradients of the query heads that share a key head.
fn gather(per_head: &[f32], sizes: Sizes) -> Vec<f32> {
    let group = sizes.heads / sizes.heads_kv;
    let mut sums = vec![0.0; sizes.heads_kv * sizes.head()];
    for (sum, heads) in sums.chunks_mut(sizes.head()).zip(per_head.chunks(group * sizes.head())) {
        for head in heads.chunks(sizes.head()) {
            sum.iter_mut().zip(head).for_each(|(s, v)| *s += v);
        }
    }
    sums
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::of(q_layout.shape(), k_layout.shape(), *self)?;
        let (q, k, v) = (floats(q, q_layout)?, floats(k, k_layout)?, floats(v, v_layout)?);
        let mut out = vec![0.0f32; q.len()];
        let heads = out.par_chunks_mut(sizes.head()).zip(q.par_chunks(sizes.head())).enumerate();
        heads.for_each(|(h, (out, q))| {
            let p = weights(scores(q, sizes.shared(k, h), sizes), sizes);
            product(out, (sizes.tokens, sizes.d), (&p, false), (sizes.shared(v, h), false), 1.0);
        });
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(q.shape(), k.shape(), *self)?;
        let (qs, ks, vs, gs) = (to_vec(q)?, to_vec(k)?, to_vec(v)?, to_vec(gradient)?);
        let head = sizes.head();
        let mut out = [(); 3].map(|()| vec![0.0f32; qs.len()]);
        let [dq, dk, dv] = &mut out;
        let outputs =
            dq.par_chunks_mut(head).zip(dk.par_chunks_mut(head)).zip(dv.par_chunks_mut(head));
        outputs.enumerate().for_each(|(h, ((dq, dk), dv))| {
            let own = h * head..(h + 1) * head;
            let inputs = [&qs[own.clone()], sizes.shared(&ks, h), sizes.shared(&vs, h), &gs[own]];
            head_gradients(inputs, sizes, [dq, dk, dv]);
        });
        let [dq, dk, dv] = out;
        let tensor = |values, like| from_vec(values, like).map(Some);
        Ok((tensor(dq, q)?, tensor(gather(&dk, sizes), k)?, tensor(gather(&dv, sizes), v)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Var};

    use super::*;

    fn random(shape: (usize, usize, usize), seed: f32) -> Var {
        let n = shape.0 * shape.1 * shape.2;
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898 + seed).sin()).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The same by candle's single operations.
    fn composed(attention: Attention, [q, k, v]: [&Tensor; 3]) -> Tensor {
        let (heads, n, d) = q.dims3().unwrap();
        let group = heads / k.dims()[0];
        let repeat = |t: &Tensor| {
            let shape = (heads / group, group, n, d);
            t.unsqueeze(1).unwrap().broadcast_as(shape).unwrap().reshape((heads, n, d)).unwrap()
        };
        let (k, v) = (repeat(k), repeat(v));
        let products = q.matmul(&k.transpose(1, 2).unwrap()).unwrap();
        let mut scores = (products * f64::from(attention.scale)).unwrap();
        if let Some(cap) = attention.cap.0.map(f64::from) {
            scores = ((scores / cap).unwrap().tanh().unwrap() * cap).unwrap();
        }
        let is_seen =
            |i: usize, j: usize| j <= i && attention.window.is_none_or(|window| i - j < window);
        let mask: Vec<f32> = (0..n * n)
            .map(|i| if is_seen(i / n, i % n) { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(mask, (1, n, n), &Device::Cpu).unwrap();
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&mask).unwrap(), D::Minus1).unwrap();
        p.matmul(&v).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn values_and_gradients_are_those_of_the_composed_operations() {
        let (heads, heads_kv, n, d) = (6, 2, 11, 4);
        let plain = Attention { scale: 0.5, cap: SoftCap(None), window: None };
        let capped = Attention { cap: SoftCap(Some(0.7)), ..plain };
        let q = random((heads, n, d), 0.1);
        let (k, v) = (random((heads_kv, n, d), 0.2), random((heads_kv, n, d), 0.3));
        let weight = random((heads, n, d), 0.4).as_tensor().detach();
        for attention in [plain, capped, Attention { window: Some(3), ..capped }] {
            let ours = q.apply_op3(&k, &v, attention).unwrap();
            let expected = composed(attention, [&q, &k, &v]);
            assert!(distance(&ours, &expected) < 1e-5);
            let gradients =
                |y: &Tensor| (y * &weight).unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, expected) = (gradients(&ours), gradients(&expected));
            for variable in [&q, &k, &v] {
                let (a, b) = (ours.get(variable).unwrap(), expected.get(variable).unwrap());
                assert!(distance(a, b) < 1e-5, "{a} {b}");
            }
        }
    }
}
