//! JSON files that people pass on.

use crate::Case;

fn case(kind: &str, name: &str, text: impl AsRef<[u8]>, says: &[&'static str]) -> Case {
    Case::new(format!("{kind}: {name}"), text.as_ref().to_vec(), says)
}

/// A JSON text of `depth` brackets within each other, which a reader that recurses would not survive.
fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

/// Files for `seeddelta-build --policy`.
#[must_use]
pub fn policies() -> Vec<Case> {
    let entry = |stem: &str, body: &str| format!(r#"{{"tensors": {{"{stem}": {body}}}}}"#);
    let up = "blk.0.ffn_up";
    let policy = |name: &str, text: String, says: &[&'static str]| case("policy", name, text, says);
    vec![
        policy("nothing", String::new(), &["EOF"]),
        policy("cut", entry(up, r#"{"base": "none""#)[..30].to_owned(), &["EOF"]),
        case("policy", "not UTF-8", b"{\"tensors\": {\"\xff\"", &["unicode"]),
        policy("no tensors", "{}".to_owned(), &["tensors"]),
        policy("a list", "[]".to_owned(), &["is no policy"]),
        policy("brackets 100000 deep", nested(100_000), &["is no policy"]),
        policy("an unknown field", entry(up, r#"{"base": "none", "k": 1}"#), &["unknown field"]),
        policy("no delta_k", entry(up, r#"{"base": "none"}"#), &["delta_k"]),
        policy("a negative delta_k", entry(up, r#"{"base": "none", "delta_k": -1}"#), &["-1"]),
        policy(
            "a delta_k of 2^64",
            entry(up, r#"{"base": "none", "delta_k": 18446744073709551616}"#),
            &["is no policy", "e+19"],
        ),
        policy("an unknown base", entry(up, r#"{"base": "magic", "delta_k": 1}"#), &["magic"]),
        policy(
            "a rank of 2^64",
            entry(up, r#"{"base": "lowrank:18446744073709551616", "delta_k": 1}"#),
            &["lowrank"],
        ),
        policy(
            "a tensor that is none",
            entry("blk.0.attn_q", r#"{"base": "none", "delta_k": 1}"#),
            &["'blk.0.attn_q' is no FFN matrix"],
        ),
        policy(
            "a tensor that writes to the terminal",
            entry(r"\u001b[31m\n", r#"{"base": "none", "delta_k": 1}"#),
            &["is no FFN matrix"],
        ),
        policy(
            "a tensor that the model lacks",
            entry("blk.7.ffn_up", r#"{"base": "none", "delta_k": 1}"#),
            &["the model has no blk.7.ffn_up"],
        ),
        policy(
            "a delta_k beyond the row",
            entry(up, r#"{"base": "none", "delta_k": 1000000}"#),
            &["1000000"],
        ),
    ]
}

/// Files for `statecells-build --sensitivity`.
#[must_use]
pub fn sensitivities() -> Vec<Case> {
    let of = |name: &str, text: &str, says: &[&'static str]| case("sensitivity", name, text, says);
    vec![
        of("nothing", "", &["no JSON object"]),
        of("cut", r#"{"blk.0.ffn_up": 1"#, &["no JSON object"]),
        case("sensitivity", "not UTF-8", b"{\"\xff\": 1}", &["no JSON object"]),
        of("a list", "[1]", &["no JSON object"]),
        of("brackets 100000 deep", &nested(100_000), &["no JSON object"]),
        of("a text", r#"{"blk.0.ffn_up": "1"}"#, &["no JSON object"]),
        of("beyond F64", r#"{"blk.0.ffn_up": 1e999}"#, &["no JSON object"]),
        of("NaN", r#"{"blk.0.ffn_up": NaN}"#, &["no JSON object"]),
        of("negative", r#"{"blk.0.ffn_up": -0.5}"#, &["blk.0.ffn_up is -0.5"]),
        of("a tensor that is none", r#"{"output": 1}"#, &["'output' is no FFN matrix"]),
        of("a tensor that writes to the terminal", r#"{"\u001b[31m\n": 1}"#, &["is no FFN matrix"]),
    ]
}
