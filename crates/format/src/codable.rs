//! Which weights of a model may be stored in coded form: the one table that builders and the run-time hook ask.
//!
//! A coded weight has no bytes that ggml could multiply with. So the table holds those weights only whose product llama.cpp
//! computes by `build_lora_mm`, where the hook is.

use crate::MatrixId;

/// A coded weight is a matrix `[d_in, d_out]`.
const N_DIMS: usize = 2;

/// Architectures (`general.architecture`) of the pinned llama.cpp that do something else with their FFN weights than
/// to hand them to `build_lora_mm`, and what. To be checked again at every raise of the pin.
const PAST_THE_HOOK: [(&str, &str); 3] = [
    ("granite-switch", "its FFN does not use the common matrix product"),
    ("jina-bert-v2", "its loader reads the dense weights' shapes"),
    ("kimi-k3", "its FFN does not use the common matrix product"),
];

/// Why a weight may not be coded; one line, without the weight's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Uncodable {
    /// The weight plays another part in the model.
    #[error("only ffn_gate, ffn_up and ffn_down of a layer can be coded")]
    Role,
    /// The weight is no matrix.
    #[error("a weight of {0} dimensions cannot be coded, only matrices can")]
    Dimensions(usize),
    /// The architecture's FFN does not pass through the hook.
    #[error("the architecture '{name}' cannot be coded: {why}")]
    Architecture {
        /// `general.architecture`.
        name: &'static str,
        /// What it does instead.
        why: &'static str,
    },
}

/// Checks an architecture (`general.architecture`), whatever the weight.
///
/// # Errors
/// [`Uncodable::Architecture`]. Architectures that are unknown here pass.
pub fn check_architecture(architecture: &str) -> Result<(), Uncodable> {
    match PAST_THE_HOOK.iter().find(|(name, _)| *name == architecture) {
        Some(&(name, why)) => Err(Uncodable::Architecture { name, why }),
        None => Ok(()),
    }
}

/// The FFN matrix that the weight `name` (`blk.0.ffn_up.weight`) of `n_dims` dimensions is, if it may be coded.
///
/// # Errors
/// [`Uncodable`].
pub fn codable(architecture: &str, name: &str, n_dims: usize) -> Result<MatrixId, Uncodable> {
    let Some((tensor, "weight")) = MatrixId::parse(name) else { return Err(Uncodable::Role) };
    if n_dims != N_DIMS {
        return Err(Uncodable::Dimensions(n_dims));
    }
    check_architecture(architecture)?;
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn matrices_of_the_ffn_may_be_coded() {
        for role in Role::ALL {
            let tensor = MatrixId { layer: 3, role };
            for architecture in ["llama", "deepseek", "jamba", "of-tomorrow"] {
                assert_eq!(codable(architecture, &tensor.weight(), 2), Ok(tensor));
            }
        }
    }

    #[test]
    fn other_weights_may_not() {
        for name in [
            "blk.0.ffn_norm.weight",
            "blk.0.ffn_up.bias",
            "blk.0.attn_q.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_up_exps.weight",
            "blk.0.ffn_up_shexp.weight",
            "blk.0.ffn_up.3.weight",
            "enc.blk.0.ffn_up.weight",
            "output.weight",
            "token_embd.weight",
            "",
        ] {
            assert_eq!(codable("llama", name, 2), Err(Uncodable::Role), "{name}");
        }
    }

    #[test]
    fn only_matrices_may() {
        for n in [0, 1, 3, 4] {
            assert_eq!(codable("llama", "blk.0.ffn_up.weight", n), Err(Uncodable::Dimensions(n)));
        }
    }

    #[test]
    fn architectures_past_the_hook_may_not() {
        for (name, why) in PAST_THE_HOOK {
            let expected = Uncodable::Architecture { name, why };
            assert_eq!(codable(name, "blk.0.ffn_up.weight", 2), Err(expected));
        }
    }
}
