//! What comes out, and one clear line for every bad input.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use fixtures::models::Model;
use format::{MatrixId, Role, keys};
use ggml::gguf::GgufFile;
use predicates::prelude::*;
use tempfile::TempDir;

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Model::default().write(&folder.path().join("model.gguf")).unwrap();
        Self(folder)
    }

    fn command(&self, flags: &str) -> Command {
        let mut command = Command::cargo_bin("seeddelta-build").unwrap();
        command.current_dir(self.0.path()).args(["-i", "model.gguf", "-o", "out.gguf"]);
        command.args(flags.split_whitespace());
        command
    }

    fn open(&self) -> GgufFile {
        GgufFile::open(&self.0.path().join("out.gguf")).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    /// The build ends with `code` and one line that holds `parts`; only inputs are left.
    fn refused(&self, flags: &str, code: i32, parts: &[&str]) {
        let all = |text: &str| parts.iter().all(|p| text.contains(p));
        let mut assert = self.command(flags).assert().code(code);
        if code == 1 {
            assert = assert.stderr(predicate::function(|t: &str| t.lines().count() == 1));
        }
        assert.stderr(predicate::function(|t: &str| all(t)));
        assert!(!Path::new(&self.0.path().join("out.gguf")).exists(), "{flags}");
    }
}

const UP: MatrixId = MatrixId { layer: 1, role: Role::Up };

#[test]
fn selected_matrices_are_replaced_and_down_is_left_alone() {
    let fixture = Fixture::new();
    fixture.command("--base lowrank:4 --delta-k 5 --override 1:up=circulant@7").assert().success();
    let file = fixture.open();
    assert_eq!(file.string(&keys::tensor_scheme(UP)).unwrap().unwrap(), "seeddelta");
    let dims = |name: &str| file.tensor(name).map(|t| t.dims().to_vec());
    assert_eq!(dims("blk.0.ffn_gate.base_v").unwrap(), [64, 4]);
    assert_eq!(dims("blk.0.ffn_gate.delta_idx").unwrap(), [5, 192]);
    assert_eq!(dims("blk.1.ffn_up.base_circ").unwrap(), [192]);
    assert_eq!(dims("blk.1.ffn_up.delta_val").unwrap(), [7, 192]);
    assert_eq!(dims("blk.1.ffn_up.weight"), None);
    assert!(dims("blk.1.ffn_down.weight").is_some());
}

#[test]
fn a_policy_decides_alone_and_the_same_flags_give_the_same_bytes() {
    let fixture = Fixture::new();
    let policy = r#"{"tensors": {"blk.1.ffn_up": {"base": "block:8", "delta_k": 0}}}"#;
    fixture.write("policy.json", policy);
    fixture.command("--policy policy.json -t 1").assert().success();
    let first = fs::read(fixture.0.path().join("out.gguf")).unwrap();
    let file = fixture.open();
    assert!(file.tensor("blk.1.ffn_up.base_block").is_some());
    assert!(file.tensor("blk.1.ffn_up.delta_idx").is_none());
    assert!(file.tensor("blk.0.ffn_up.weight").is_some());
    fixture.command("--policy policy.json -t 3 --force").assert().success();
    assert_eq!(fs::read(fixture.0.path().join("out.gguf")).unwrap(), first);
}

#[test]
fn what_does_not_fit_gives_one_line() {
    let fixture = Fixture::new();
    fixture.refused("--delta-k 65", 1, &["blk.0.ffn_gate.weight", "--delta-k = 65", "1 to 64"]);
    fixture.refused("--delta-k 0", 1, &["--delta-k", "use --delta none"]);
    fixture.refused("--base lowrank:65", 1, &["blk.0.ffn_gate.weight", "rank from 1 to 64"]);
    fixture.refused("--base none --delta none", 1, &["without a delta nothing is left"]);
    fixture.refused("--layers 2", 1, &["--layers 2", "2 layers"]);
    fixture.refused("--override 7=none@3", 1, &["--override", "7=none@3", "2 layers"]);
    fixture.refused("--base magic", 2, &["unknown base 'magic'"]);
    fixture.refused("--override 1=none", 2, &["LAYERS[:TARGETS]=BASE@K"]);
    fixture.refused("--policy p.json --delta-k 3", 2, &["--policy", "--delta-k"]);
    fixture.refused("--policy p.json", 1, &["p.json"]);
    fixture.write("p.json", r#"{"tensors": {"blk.9.ffn_up": {"base": "none", "delta_k": 3}}}"#);
    fixture.refused("--policy p.json", 1, &["--policy", "blk.9.ffn_up", "take it out"]);
    fixture.write("p.json", r#"{"tensors": {"blk.1.attn_q": {"base": "none", "delta_k": 3}}}"#);
    fixture.refused("--policy p.json", 1, &["p.json", "'blk.1.attn_q' is no FFN matrix"]);
    fixture.write("p.json", r#"{"tensors": {}}"#);
    fixture.refused("--policy p.json", 1, &["--policy", "no FFN matrix"]);
}

#[test]
fn a_model_without_a_gate_is_coded_where_it_can_be() {
    let fixture = Fixture::new();
    let path = fixture.0.path().join("model.gguf");
    Model { has_gate: false, ..Model::default() }.write(&path).unwrap();
    fixture.refused("--targets gate,up", 1, &["--targets", "no ffn_gate"]);
    fixture.command("--targets up,down --base diagonal").assert().success();
    // By default what there is of gate and up.
    fixture.command("--base diagonal --force").assert().success();
    let coded: Vec<String> = fixture.open().schemes().keys().map(ToString::to_string).collect();
    assert_eq!(coded, ["blk.0.ffn_up", "blk.1.ffn_up"]);
    assert!(fixture.open().tensor("blk.0.ffn_down.weight").is_some());
}
