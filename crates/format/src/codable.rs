//! Which weights of a model may be stored in coded form: the one table that builders and the run-time hook ask.
//!
//! A coded weight has no bytes that ggml could multiply with. So the table holds those weights only whose product llama.cpp
//! computes by `build_lora_mm`, where the hook is.

use crate::{Branch, MatrixId};

/// Dimensions of a weight of a branch: `[d_in, d_out]`, or one such matrix for each expert.
fn n_dims_of(branch: Branch) -> usize {
    match branch {
        Branch::Plain | Branch::SharedExpert => 2,
        Branch::Experts => 3,
    }
}

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
    #[error("only ffn_gate, ffn_up and ffn_down of a layer and of its experts can be coded")]
    Role,
    /// The weight is no matrix, or those of experts are no matrices.
    #[error("a weight of {0} dimensions cannot be coded here, only one of {1}")]
    Dimensions(usize, usize),
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
    let expected = n_dims_of(tensor.role.branch());
    if n_dims != expected {
        return Err(Uncodable::Dimensions(n_dims, expected));
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
                let n_dims = n_dims_of(role.branch());
                assert_eq!(codable(architecture, &tensor.weight(), n_dims), Ok(tensor));
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
            "blk.0.ffn_up_chexps.weight",
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
            let found = codable("llama", "blk.0.ffn_up.weight", n);
            assert_eq!(found, Err(Uncodable::Dimensions(n, 2)));
        }
        let experts = |n| codable("llama", "blk.0.ffn_up_exps.weight", n);
        assert_eq!((experts(2), experts(4)), {
            (Err(Uncodable::Dimensions(2, 3)), Err(Uncodable::Dimensions(4, 3)))
        });
    }

    #[test]
    fn architectures_past_the_hook_may_not() {
        for (name, why) in PAST_THE_HOOK {
            let expected = Uncodable::Architecture { name, why };
            assert_eq!(codable(name, "blk.0.ffn_up.weight", 2), Err(expected));
        }
    }
}
