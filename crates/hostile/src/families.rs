//! Sound models of the families whose weights a loader treats differently, one or two layers each.

use crate::gguf::{Gguf, Tensor, Value, value_type};
use crate::good::{self, N_EMBD, N_FF, N_VOCAB, matrix, noise, norm};

const N_EXPERT: usize = 2;
/// Width of the state-space layer; the architecture allows no other.
const D_INNER: usize = 2 * N_EMBD;
const D_STATE: usize = 4;
const D_CONV: usize = 4;
const DT_RANK: usize = 2;

/// A family by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// llama: every layer has a plain FFN.
    Dense,
    /// llama with experts.
    Mixture,
    /// deepseek: a plain FFN first, then experts and a shared expert.
    DeepSeek,
    /// jamba: a state-space layer with a plain FFN, then attention with experts.
    Recurrent,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dense, Self::Mixture, Self::DeepSeek, Self::Recurrent];

    /// A name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Mixture => "mixture",
            Self::DeepSeek => "deepseek",
            Self::Recurrent => "recurrent",
        }
    }

    /// The model, in F32, which llama.cpp loads and runs.
    #[must_use]
    pub fn model(self) -> Gguf {
        match self {
            Self::Dense => {
                let mut file = good::model();
                let bias = Tensor::f32("blk.0.attn_output.bias", &[N_EMBD as u64], &[0.0; N_EMBD]);
                file.tensors.push(bias);
                file
            }
            Self::Mixture => mixture(),
            Self::DeepSeek => deepseek(),
            Self::Recurrent => recurrent(),
        }
    }

    /// Whether layer 0 has a plain FFN, which may be coded.
    #[must_use]
    pub fn has_ffn(self) -> bool {
        self != Self::Mixture
    }
}

/// Metadata, embedding and output of a model of `n_layers` layers; the layers are still to come.
fn frame(architecture: &str, n_layers: usize) -> Gguf {
    let mut file = Gguf::default();
    file.set("general.architecture", Value::text(architecture));
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", N_EMBD),
        ("block_count", n_layers),
        ("feed_forward_length", N_FF),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", N_EMBD / 2),
        ("vocab_size", N_VOCAB),
        ("expert_count", N_EXPERT),
        ("expert_used_count", 1),
    ] {
        file.set(format!("{architecture}.{key}"), Value::u32(value as u32));
    }
    file.set(format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::f32(1e-5));
    good::vocabulary(&mut file);
    file.tensors.push(matrix("token_embd.weight", N_EMBD, N_VOCAB));
    file.tensors.push(norm("output_norm.weight"));
    file.tensors.push(matrix("output.weight", N_EMBD, N_VOCAB));
    for layer in 0..n_layers {
        file.tensors.push(norm(&format!("blk.{layer}.attn_norm.weight")));
        file.tensors.push(norm(&format!("blk.{layer}.ffn_norm.weight")));
    }
    file
}

fn experts(file: &mut Gguf, layer: usize) {
    file.tensors.push(matrix(&format!("blk.{layer}.ffn_gate_inp.weight"), N_EMBD, N_EXPERT));
    for (name, d_in, d_out) in
        [("gate", N_EMBD, N_FF), ("up", N_EMBD, N_FF), ("down", N_FF, N_EMBD)]
    {
        let name = format!("blk.{layer}.ffn_{name}_exps.weight");
        let dims = [d_in as u64, d_out as u64, N_EXPERT as u64];
        file.tensors.push(Tensor::f32(name, &dims, &noise(d_in * d_out * N_EXPERT, 5)));
    }
}

fn mixture() -> Gguf {
    let mut file = frame("llama", 1);
    good::attention(&mut file, 0);
    file.tensors.push(Tensor::f32("blk.0.attn_output.bias", &[N_EMBD as u64], &[0.0; N_EMBD]));
    experts(&mut file, 0);
    file
}

fn deepseek() -> Gguf {
    let mut file = frame("deepseek", 2);
    file.set("deepseek.leading_dense_block_count", Value::u32(1));
    file.set("deepseek.expert_feed_forward_length", Value::u32(N_FF as u32));
    file.set("deepseek.expert_shared_count", Value::u32(1));
    for layer in 0..2 {
        good::attention(&mut file, layer);
    }
    file.tensors.push(Tensor::f32("blk.0.attn_q.bias", &[N_EMBD as u64], &[0.0; N_EMBD]));
    good::ffn(&mut file, 0);
    experts(&mut file, 1);
    for (name, d_in, d_out) in
        [("gate", N_EMBD, N_FF), ("up", N_EMBD, N_FF), ("down", N_FF, N_EMBD)]
    {
        file.tensors.push(matrix(&format!("blk.1.ffn_{name}_shexp.weight"), d_in, d_out));
    }
    file
}

fn recurrent() -> Gguf {
    let mut file = frame("jamba", 2);
    for (key, value) in [
        ("ssm.conv_kernel", D_CONV),
        ("ssm.inner_size", D_INNER),
        ("ssm.state_size", D_STATE),
        ("ssm.time_step_rank", DT_RANK),
    ] {
        file.set(format!("jamba.{key}"), Value::u32(value as u32));
    }
    // Without heads for keys, a layer is one with a state.
    let heads = [0u32, 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    file.set("jamba.attention.head_count_kv", Value::array(value_type::U32, 2, heads));
    let mut put = |name: &str, dims: &[usize]| {
        let n = dims.iter().product();
        let dims: Vec<u64> = dims.iter().map(|d| *d as u64).collect();
        file.tensors.push(Tensor::f32(format!("blk.0.ssm_{name}"), &dims, &noise(n, 3)));
    };
    put("in.weight", &[N_EMBD, 2 * D_INNER]);
    put("conv1d.weight", &[D_CONV, D_INNER]);
    put("conv1d.bias", &[D_INNER]);
    put("x.weight", &[D_INNER, DT_RANK + 2 * D_STATE]);
    put("dt_norm.weight", &[DT_RANK]);
    put("dt.weight", &[DT_RANK, D_INNER]);
    put("dt.bias", &[D_INNER]);
    put("b_norm.weight", &[D_STATE]);
    put("c_norm.weight", &[D_STATE]);
    put("a", &[D_STATE, D_INNER]);
    put("d", &[D_INNER]);
    put("out.weight", &[D_INNER, N_EMBD]);
    good::ffn(&mut file, 0);
    good::attention(&mut file, 1);
    experts(&mut file, 1);
    file
}
