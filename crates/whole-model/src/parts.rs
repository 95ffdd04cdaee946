//! The tensors of a model of a known family: their names and shapes.

use format::{MatrixId, Role};

use crate::config::Config;
use crate::family::{HeadNorm, Norms};

pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// Where it is missing, the embedding takes its place.
pub(crate) const OUTPUT: &str = "output.weight";
pub(crate) const OUTPUT_BIAS: &str = "output.bias";
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";

pub(crate) const ATTN_NORM: &str = "attn_norm";
pub(crate) const ATTN_POST_NORM: &str = "post_attention_norm";
pub(crate) const FFN_NORM: &str = "ffn_norm";
pub(crate) const FFN_POST_NORM: &str = "post_ffw_norm";
pub(crate) const Q: &str = "attn_q";
pub(crate) const K: &str = "attn_k";
pub(crate) const V: &str = "attn_v";
/// The three above in one matrix.
pub(crate) const QKV: &str = "attn_qkv";
pub(crate) const Q_NORM: &str = "attn_q_norm";
pub(crate) const K_NORM: &str = "attn_k_norm";
pub(crate) const ATTN_OUTPUT: &str = "attn_output";

/// The weight called `part` in `layer`.
pub(crate) fn weight(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}.weight")
}

/// What is added to the product with it.
pub(crate) fn bias(layer: usize, part: &str) -> String {
    format!("blk.{layer}.{part}.bias")
}

/// A tensor that a layer may have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// Innermost first.
    pub(crate) dims: Vec<usize>,
    pub(crate) is_required: bool,
    /// The FFN matrix that it is.
    pub(crate) role: Option<Role>,
}

/// Everything that `layer` of a model may have whose FFN is `n_ff` wide, and whose queries, keys and values are one
/// matrix if `is_fused`.
pub(crate) fn of_layer(config: &Config, layer: usize, n_ff: usize, is_fused: bool) -> Vec<Part> {
    let Config { n_embd, n_head, n_head_kv, head_dim, family, .. } = *config;
    let (q, kv) = (n_head * head_dim, n_head_kv * head_dim);
    let mut parts = Vec::new();
    let part = |name, dims: &[usize], is_required| Part {
        name,
        dims: dims.to_vec(),
        is_required,
        role: None,
    };
    let mut norm = |name: &str, n: usize, is_there: bool| {
        if is_there {
            parts.push(part(weight(layer, name), &[n], true));
        }
    };
    let (before, behind) = (family.norms != Norms::Behind, family.norms != Norms::Before);
    norm(ATTN_NORM, n_embd, before);
    norm(FFN_NORM, n_embd, before);
    norm(ATTN_POST_NORM, n_embd, behind);
    norm(FFN_POST_NORM, n_embd, behind);
    let lengths = match family.head_norm {
        HeadNorm::None => None,
        HeadNorm::Head => Some([head_dim, head_dim]),
        HeadNorm::Whole => Some([q, kv]),
    };
    for (name, length) in [Q_NORM, K_NORM].into_iter().zip(lengths.into_iter().flatten()) {
        norm(name, length, true);
    }
    let own = [(Q, q), (K, kv), (V, kv)];
    let mut product = |name: &str, d_in: usize, d_out: usize| {
        parts.push(part(weight(layer, name), &[d_in, d_out], true));
        parts.push(part(bias(layer, name), &[d_out], false));
    };
    product(ATTN_OUTPUT, q, n_embd);
    if is_fused {
        product(QKV, n_embd, q + 2 * kv);
        parts.extend(own.map(|(name, n)| part(bias(layer, name), &[n], false)));
    } else {
        own.iter().for_each(|(name, n)| product(name, n_embd, *n));
    }
    let roles = Role::PLAIN.into_iter().filter(|r| !family.has_gate_in_up || *r != Role::Gate);
    for role in roles {
        let dims = match role {
            Role::Down => [n_ff, n_embd],
            Role::Up if family.has_gate_in_up => [n_embd, 2 * n_ff],
            _ => [n_embd, n_ff],
        };
        let name = MatrixId { layer, role }.weight();
        parts.push(Part { role: Some(role), ..part(name, &dims, true) });
        parts.push(part(bias(layer, role.part()), &dims[1..], false));
    }
    parts
}
