//! Tensors and their parameters from a JSON file, see `docs/schema/seeddelta-policy.schema.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use builder::{Error, by_tensor};
use format::MatrixId;
use seeddelta::Choice;

/// Reads the policy at `path`. Whether the model has the tensors is not known here.
///
/// # Errors
/// [`Error::Program`] naming the file and what is wrong in it.
pub fn read(path: &Path) -> Result<BTreeMap<MatrixId, Choice>, Error> {
    let text = fs::read(path).map_err(program::io(path, "read"))?;
    let refuse = |reason| Error::flag("--policy", format!("{}: {reason}", path.display()));
    by_tensor::policy(&text).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BTreeMap<MatrixId, Choice>, String> {
        by_tensor::policy(text.as_bytes())
    }

    #[test]
    fn a_policy_names_tensors_bases_and_numbers() {
        let policy = r#"{"tensors": {"blk.2.ffn_up": {"base": "lowrank:4", "delta_k": 7}}}"#;
        let tensors = parse(policy).unwrap();
        let (tensor, choice) = tensors.first_key_value().unwrap();
        assert_eq!((tensor.to_string().as_str(), choice.delta_k), ("blk.2.ffn_up", 7));
        for bad in [
            "",
            "{}",
            r#"{"tensors": {"blk.2.attn_q": {"base": "none", "delta_k": 7}}}"#,
            r#"{"tensors": {"blk.2.ffn_up": {"base": "magic", "delta_k": 7}}}"#,
            r#"{"tensors": {"blk.2.ffn_up": {"base": "none", "k": 7}}}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
