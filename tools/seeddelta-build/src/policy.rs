//! Tensors and their parameters from a JSON file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use builder::Error;
use codec::FfnTensor;
use seeddelta::BaseSpec;
use serde::Deserialize;

use crate::method::Choice;

/// The file, see `docs/schema/seeddelta-policy.schema.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    base: BaseSpec,
    delta_k: usize,
}

/// Reads the policy at `path`. Whether the model has the tensors is not known here.
///
/// # Errors
/// [`Error::Io`], or [`Error::Selection`] naming the file and what is wrong in it.
pub fn read(path: &Path) -> Result<BTreeMap<FfnTensor, Choice>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    parse(&text).map_err(|reason| Error::Selection {
        flag: "--policy",
        reason: format!("{}: {reason}", path.display()),
    })
}

fn parse(text: &str) -> Result<BTreeMap<FfnTensor, Choice>, String> {
    let policy: Policy = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let tensor = |(name, entry): (String, Entry)| match FfnTensor::parse(&format!("{name}.weight"))
    {
        Some((tensor, _)) => Ok((tensor, Choice { base: entry.base, delta_k: entry.delta_k })),
        None => Err(format!("'{name}' is no FFN matrix: write names such as blk.0.ffn_up")),
    };
    policy.tensors.into_iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
