//! Codes, sound and wrong ones, for weights that nobody may code: norms, biases, attention, routers, experts, the output.

use crate::Case;
use crate::families::Family;
use crate::gguf::{Gguf, Tensor, Value, tensor_type};
use crate::good::{self, N_EMBD};

/// How the code stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// Right in itself, in place of the weight.
    WellShaped,
    /// Right in itself, beside the weight.
    Beside,
    /// For another number of rows than the weight has; in place of the weight.
    Wrong,
}

/// Tensor, and what its sidecars and keys start with.
type Place = (&'static str, &'static str);

/// A weight for each part that a weight can play. Where the family has no such part, the code is one for nothing.
fn places(family: Family) -> [(&'static str, Place); 6] {
    let bias = match family {
        Family::Dense | Family::Mixture => ("blk.0.attn_output.bias", "blk.0.attn_output.bias"),
        Family::DeepSeek => ("blk.0.attn_q.bias", "blk.0.attn_q.bias"),
        Family::Recurrent => ("blk.0.ssm_conv1d.bias", "blk.0.ssm_conv1d.bias"),
    };
    let attention = match family {
        Family::Recurrent => ("blk.1.attn_q.weight", "blk.1.attn_q"),
        _ => ("blk.0.attn_q.weight", "blk.0.attn_q"),
    };
    let (router, expert) = match family {
        Family::Dense | Family::Mixture => (
            ("blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp"),
            ("blk.0.ffn_up_exps.weight", "blk.0.ffn_up_exps"),
        ),
        Family::DeepSeek | Family::Recurrent => (
            ("blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate_inp"),
            ("blk.1.ffn_up_exps.weight", "blk.1.ffn_up_exps"),
        ),
    };
    [
        ("norm", ("blk.0.ffn_norm.weight", "blk.0.ffn_norm")),
        ("bias", bias),
        ("attention", attention),
        ("router", router),
        ("expert", expert),
        ("output", ("output.weight", "output")),
    ]
}

/// Files for the patched llama.cpp with and without `--statecells`: every family, part and code.
#[must_use]
pub fn misplaced() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for (part, place) in places(family) {
            for code in [Code::WellShaped, Code::Beside, Code::Wrong] {
                let name = format!("misplaced: {code:?} code for {part} of {}", family.name());
                cases.push(Case::of(name, &coded(family, place, code), &[place.1]));
            }
        }
    }
    cases
}

fn coded(family: Family, (tensor, stem): Place, code: Code) -> Gguf {
    let mut file = family.model();
    good::mark_coded(&mut file, "sections");
    let dense = file.tensors.iter().find(|t| t.name == tensor.as_bytes()).cloned();
    let (d_in, d_out) = match &dense {
        Some(dense) => (dense.dims[0] as usize, dense.dims[1..].iter().product::<u64>() as usize),
        None => (N_EMBD, N_EMBD),
    };
    let rows = match code {
        Code::WellShaped | Code::Beside => d_out,
        Code::Wrong => {
            if d_out == 1 {
                33
            } else {
                1
            }
        }
    };
    let sidecars = sections(stem, d_in, rows);
    match dense {
        Some(_) if code == Code::Beside => file.tensors.extend(sidecars),
        Some(_) => good::code_tensor(&mut file, tensor, stem, "sections", sidecars),
        // A matrix that no part of the model is.
        None if code == Code::Beside => {
            file.tensors.push(good::matrix(tensor, d_in, d_out));
            file.tensors.extend(sidecars);
        }
        None => file.tensors.extend(sidecars),
    }
    file.set(format!("statecells.{stem}.scheme"), Value::text("sections"));
    file
}

/// A code in two sections for `d_out` rows of `d_in` inputs.
fn sections(stem: &str, d_in: usize, d_out: usize) -> Vec<Tensor> {
    let (blocks, tiles) = (d_in.div_ceil(8), d_out.div_ceil(32));
    let codes = vec![0x5a; 32 * blocks * tiles];
    let dims = [32, blocks as u64, tiles as u64];
    vec![
        Tensor::f16(format!("{stem}.dict"), &[8, 16, 2], &good::halves(8 * 16 * 2)),
        Tensor::new(format!("{stem}.codes"), tensor_type::I8, &dims, codes),
        Tensor::f16(format!("{stem}.row_scale"), &[d_out as u64], &good::halves(d_out)),
    ]
}

/// [`Family::model`] with `blk.0.ffn_up` in two sections, as a builder may make it.
///
/// # Panics
/// If the family has no plain FFN there.
#[must_use]
pub fn sound(family: Family) -> Gguf {
    assert!(family.has_ffn(), "{family:?}");
    coded(family, ("blk.0.ffn_up.weight", "blk.0.ffn_up"), Code::WellShaped)
}
