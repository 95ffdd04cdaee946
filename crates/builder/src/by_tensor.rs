//! JSON files that say something about single tensors: policies and sensitivities. They are passed on by
//! people and read as files of strangers.

use std::collections::BTreeMap;

use format::MatrixId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy<T> {
    #[serde(bound(deserialize = "T: Deserialize<'de>"))]
    tensors: BTreeMap<String, T>,
}

/// Parses `{"tensors": {"blk.0.ffn_up": ...}}`. Whether a model has the tensors is not known here.
///
/// # Errors
/// What is wrong, for a message that names the file.
pub fn policy<T: DeserializeOwned>(text: &[u8]) -> Result<BTreeMap<MatrixId, T>, String> {
    let policy: Policy<T> = serde_json::from_slice(text).map_err(|e| {
        format!("is no policy ({e}): write {{\"tensors\": {{\"blk.0.ffn_up\": ...}}}}")
    })?;
    let tensor = |(stem, entry): (String, T)| match MatrixId::of_stem(&stem) {
        Some(tensor) => Ok((tensor, entry)),
        None => Err(format!("'{stem}' is no FFN matrix: write names such as blk.0.ffn_up")),
    };
    policy.tensors.into_iter().map(tensor).collect()
}

const EXAMPLE: &str = r#"{"blk.0.ffn_down": 2.5}"#;

/// Parses `{"blk.0.ffn_down": 2.5}`: a factor of at least 0 per tensor.
///
/// # Errors
/// What is wrong, for a message that names the file.
pub fn sensitivities(text: &[u8]) -> Result<BTreeMap<MatrixId, f64>, String> {
    let named: BTreeMap<String, f64> = serde_json::from_slice(text)
        .map_err(|e| format!("is no JSON object of tensors and numbers ({e}): write {EXAMPLE}"))?;
    let factor = |(stem, factor): (String, f64)| match MatrixId::of_stem(&stem) {
        None => Err(format!("'{stem}' is no FFN matrix: write {EXAMPLE}")),
        Some(_) if !(factor.is_finite() && factor >= 0.0) => {
            Err(format!("{stem} is {factor}: use numbers of at least 0"))
        }
        Some(tensor) => Ok((tensor, factor)),
    };
    named.into_iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_names_of_matrices() {
        let policy =
            |stem: &str| policy::<u32>(format!(r#"{{"tensors":{{"{stem}":7}}}}"#).as_bytes());
        let (tensor, entry) = policy("blk.2.ffn_up").unwrap().pop_first().unwrap();
        assert_eq!((tensor.stem().as_str(), entry), ("blk.2.ffn_up", 7));
        for stem in [
            "",
            "blk.2.ffn_up.x",
            "blk.2.ffn_up.",
            "blk.02.ffn_up",
            "blk.2.attn_q",
            "blk.9999999.ffn_up",
        ] {
            assert!(policy(stem).unwrap_err().contains("is no FFN matrix"), "{stem}");
        }
    }

    #[test]
    fn what_is_not_of_the_form_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"tensors": {}, "more": 1}"#,
            r#"{"tensors": {"blk.2.ffn_up": "7"}}"#,
        ] {
            assert!(policy::<u32>(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(sensitivities(b"{}"), Ok(BTreeMap::new()));
        for text in ["[]", r#"{"blk.0.ffn_up": -1}"#, r#"{"blk.0.ffn_up": null}"#] {
            assert!(sensitivities(text.as_bytes()).is_err(), "{text}");
        }
    }
}
