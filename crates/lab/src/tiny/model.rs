//! The llama architecture: rotary attention and a gated FFN, each behind an RMS norm.

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use whole_model::fused::{Activation, Glu, RmsNorm};

use crate::tiny::batch::Batch;
use crate::tiny::experts::{Expert, Experts};
use crate::tiny::operations::{CausalSoftmax, CrossEntropy, Rope, log_sum_exp};
use crate::tiny::{Error, vocabulary};

/// Sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Layers.
    pub n_layers: usize,
    /// Width of the hidden state.
    pub n_embd: usize,
    /// Width of the FFN.
    pub n_ff: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Experts of every layer, each with an FFN of that width; 0 for one FFN.
    #[serde(default)]
    pub n_experts: usize,
    /// Experts that a token uses.
    #[serde(default)]
    pub n_used: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { n_layers: 8, n_embd: 192, n_ff: 768, n_heads: 6, n_experts: 0, n_used: 0 }
    }
}

impl Config {
    /// Added to the mean square of a norm.
    pub const NORM_EPS: f32 = 1e-5;
    /// Base of the rotary angles; texts are short.
    pub const FREQ_BASE: f32 = 10_000.0;

    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_heads
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn check(&self) -> std::result::Result<(), Error> {
        let sizes = [self.n_layers, self.n_embd, self.n_ff, self.n_heads];
        if sizes.contains(&0) || !self.n_embd.is_multiple_of(2 * self.n_heads) {
            return Err(Error::Model(format!(
                "a width of {} does not make {} heads of an even width",
                self.n_embd, self.n_heads
            )));
        }
        if self.n_used > self.n_experts || (self.n_experts > 0) != (self.n_used > 0) {
            let Self { n_used, n_experts, .. } = self;
            return Err(Error::Model(format!(
                "a token cannot use {n_used} of {n_experts} experts"
            )));
        }
        Ok(())
    }
}

/// Before the number of an expert in a parameter's name, which no tensor of the GGUF has: all experts are one there.
pub(super) const EXPERT: &str = "_exps.";

/// A parameter under its name in the GGUF. Matrices are [d_out, d_in] in ggml order, the transpose of what llama.cpp
/// stores, so that products need no transposition; the embedding is as llama.cpp's.
pub struct Parameter {
    /// Name in the GGUF.
    pub name: String,
    /// Values.
    pub var: Var,
}

struct Layer {
    attn_norm: Var,
    attn_q: Var,
    attn_k: Var,
    attn_v: Var,
    attn_output: Var,
    ffn_norm: Var,
    ffn: Ffn,
}

enum Ffn {
    Plain(Expert),
    Experts(Experts),
}

/// The parameters and the forward pass.
pub struct Model {
    config: Config,
    embedding: Var,
    layers: Vec<Layer>,
    output_norm: Var,
    output: Var,
    parameters: Vec<Parameter>,
}

/// Makes parameters and lists them.
struct Maker {
    rng: ChaCha8Rng,
    parameters: Vec<Parameter>,
}

impl Maker {
    fn add(&mut self, name: String, values: Vec<f32>, dims: &[usize]) -> Result<Var> {
        let var = Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?;
        self.parameters.push(Parameter { name, var: var.clone() });
        Ok(var)
    }

    /// Normal values (the sum of 12 uniform ones) of the given spread.
    fn matrix(&mut self, name: String, rows: usize, columns: usize, std: f32) -> Result<Var> {
        let mut normal = || (0..12).map(|_| self.rng.random::<f32>()).sum::<f32>() - 6.0;
        let values = (0..rows * columns).map(|_| std * normal()).collect();
        self.add(name, values, &[rows, columns])
    }

    /// The FFN of a layer; those matrices whose outputs add to the hidden state have the second spread.
    fn ffn(&mut self, layer: usize, config: &Config, (std, small): (f32, f32)) -> Result<Ffn> {
        let Config { n_embd: d, n_ff, n_experts, n_used, .. } = *config;
        let one = |maker: &mut Self, suffix: &str| -> Result<Expert> {
            let name = |part: &str| format!("blk.{layer}.{part}{suffix}.weight");
            Ok(Expert {
                gate: maker.matrix(name("ffn_gate"), d, n_ff, std)?,
                up: maker.matrix(name("ffn_up"), d, n_ff, std)?,
                down: maker.matrix(name("ffn_down"), n_ff, d, small)?,
            })
        };
        if n_experts == 0 {
            return Ok(Ffn::Plain(one(self, "")?));
        }
        let name = format!("blk.{layer}.ffn_gate_inp.weight");
        let router = self.matrix(name, d, n_experts, std)?;
        let all =
            (0..n_experts).map(|e| one(self, &format!("{EXPERT}{e}"))).collect::<Result<_>>()?;
        Ok(Ffn::Experts(Experts { router, all, n_used }))
    }

    fn ones(&mut self, name: String, n: usize) -> Result<Var> {
        self.add(name, vec![1.0; n], &[n])
    }
}

/// The gated unit of llamas.
pub(super) const GLU: Glu = Glu { activation: Activation::Silu };

impl Model {
    /// A model with random parameters.
    ///
    /// # Errors
    /// [`Error::Model`] for sizes that do not fit.
    pub fn new(config: Config, seed: u64) -> std::result::Result<Self, Error> {
        config.check()?;
        let Config { n_layers, n_embd: d, .. } = config;
        let mut maker = Maker { rng: ChaCha8Rng::seed_from_u64(seed), parameters: Vec::new() };
        let n_vocab = vocabulary::size();
        let embedding = maker.matrix("token_embd.weight".to_owned(), n_vocab, d, 0.5)?;
        let std = (d as f32).sqrt().recip();
        // What adds to the hidden state starts small, or its variance would grow with every layer.
        let small = std / (2.0 * n_layers as f32).sqrt();
        let mut layers = Vec::new();
        for i in 0..n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attn_norm: maker.ones(name("attn_norm"), d)?,
                attn_q: maker.matrix(name("attn_q"), d, d, std)?,
                attn_k: maker.matrix(name("attn_k"), d, d, std)?,
                attn_v: maker.matrix(name("attn_v"), d, d, std)?,
                attn_output: maker.matrix(name("attn_output"), d, d, small)?,
                ffn_norm: maker.ones(name("ffn_norm"), d)?,
                ffn: maker.ffn(i, &config, (std, small * 0.7))?,
            });
        }
        let output_norm = maker.ones("output_norm.weight".to_owned(), d)?;
        let output = maker.matrix("output.weight".to_owned(), d, n_vocab, std * 0.5)?;
        let parameters = maker.parameters;
        Ok(Self { config, embedding, layers, output_norm, output, parameters })
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config
    }

    /// All parameters, in the order of the file.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Logits after every token, candle shape (tokens, vocabulary), for rows of `length` tokens.
    ///
    /// # Errors
    /// From candle.
    pub fn logits(&self, tokens: &[u32], length: usize) -> Result<Tensor> {
        Ok(self.forward(tokens, length)?.0)
    }

    /// The logits, and of a mixture of experts what is added to the mean loss of a token.
    fn forward(&self, tokens: &[u32], length: usize) -> Result<(Tensor, Option<Tensor>)> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&tokens, 0)?;
        let mut balance: Option<Tensor> = None;
        for layer in &self.layers {
            x = (&x + self.attention(layer, &norm(&x, &layer.attn_norm)?, length)?)?;
            let h = norm(&x, &layer.ffn_norm)?;
            let y = match &layer.ffn {
                Ffn::Plain(ffn) => {
                    let inner = h.matmul(&ffn.gate)?.apply_op2(&h.matmul(&ffn.up)?, GLU)?;
                    inner.matmul(&ffn.down)?
                }
                Ffn::Experts(experts) => {
                    let (y, cost) = experts.forward(&h)?;
                    balance = Some(match balance {
                        Some(sum) => (sum + cost)?,
                        None => cost,
                    });
                    y
                }
            };
            x = (&x + y)?;
        }
        Ok((norm(&x, &self.output_norm)?.matmul(&self.output)?, balance))
    }

    fn attention(&self, layer: &Layer, h: &Tensor, length: usize) -> Result<Tensor> {
        let (n, d) = h.dims2()?;
        let (heads, width) = (self.config.n_heads, self.config.head_dim());
        let rope =
            || Rope { length, head_dim: width, freq_base: Config::FREQ_BASE, backwards: false };
        // (rows, heads, length, width)
        let split = |t: Tensor| {
            t.reshape((n / length, length, heads, width))?.transpose(1, 2)?.contiguous()
        };
        let q = split(h.matmul(&layer.attn_q)?.apply_op1(rope())?)?;
        let k = split(h.matmul(&layer.attn_k)?.apply_op1(rope())?)?;
        let v = split(h.matmul(&layer.attn_v)?)?;
        let scale = (width as f32).sqrt().recip();
        let weights = q.matmul(&k.t()?)?.apply_op1(CausalSoftmax { scale })?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((n, d))?;
        mixed.matmul(&layer.attn_output)
    }

    /// The part that `batch` has in the mean loss of `n_counted` tokens of answers, ready for `backward`, and the
    /// logits.
    ///
    /// # Errors
    /// From candle.
    pub fn loss(&self, batch: &Batch, n_counted: usize) -> Result<(Tensor, Tensor)> {
        let (logits, balance) = self.forward(&batch.tokens, batch.length)?;
        let labels = batch.labels.clone();
        let loss = logits.apply_op1(CrossEntropy { labels, n_counted })?;
        let Some(balance) = balance else { return Ok((loss, logits)) };
        let share: usize = batch.answers.iter().map(|answer| answer.len()).sum();
        let balance = (balance * (share as f64 / n_counted.max(1) as f64))?;
        Ok(((loss + balance)?, logits))
    }
}

fn norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps: Config::NORM_EPS })
}

/// How well logits predict the answers of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Answers.
    pub n_answers: usize,
    /// Answers of which the most probable token is right everywhere: what greedy decoding gets right.
    pub n_exact: usize,
    /// Tokens of answers.
    pub n_tokens: usize,
    /// Sum of their `-log p`.
    pub nll: f64,
}

impl Score {
    /// Scores `logits` (tokens x vocabulary).
    ///
    /// # Errors
    /// From candle.
    pub fn of(batch: &Batch, logits: &Tensor) -> Result<Self> {
        let logits = logits.to_vec2::<f32>()?;
        let mut score = Self::default();
        for answer in &batch.answers {
            let mut exact = true;
            for i in answer.clone() {
                let (row, label) = (&logits[i], batch.labels[i] as usize);
                score.nll += f64::from(log_sum_exp(row) - row[label]);
                exact &= row.iter().enumerate().all(|(j, v)| j == label || *v < row[label]);
            }
            score.n_answers += 1;
            score.n_exact += usize::from(exact);
            score.n_tokens += answer.len();
        }
        Ok(score)
    }

    /// Adds another score.
    pub fn add(&mut self, other: &Self) {
        self.n_answers += other.n_answers;
        self.n_exact += other.n_exact;
        self.n_tokens += other.n_tokens;
        self.nll += other.nll;
    }

    /// Share of exact answers.
    #[must_use]
    pub fn exact_rate(&self) -> f64 {
        self.n_exact as f64 / self.n_answers.max(1) as f64
    }

    /// Perplexity of the tokens of answers.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.n_tokens.max(1) as f64).exp()
    }
}
