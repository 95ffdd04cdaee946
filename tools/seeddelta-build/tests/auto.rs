//! `--policy auto`: what can be coded without loss is coded, and nothing else.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use fixtures::models::Model;
use ggml::gguf::GgufFile;
use predicates::prelude::*;
use tempfile::TempDir;

/// Rows of the FFN of layer 1 are multiples of two rows; layer 0 has full rank, and much of the output.
fn write_model(path: &Path) {
    let model = Model::default();
    let weights = |name: &str, values: &mut [f32]| {
        let d_in = if name.contains("ffn_down") { model.n_ff } else { model.n_embd };
        if name.starts_with("blk.1.ffn") && !name.contains("norm") {
            for i in 2 * d_in..values.len() {
                values[i] = values[i % (2 * d_in)] * ((i / d_in) as f32).sin();
            }
        } else if name == "blk.0.ffn_down.weight" {
            values.iter_mut().for_each(|v| *v *= 30.0);
        }
    };
    model.write_with(path, |_| Ok(()), weights).unwrap();
}

fn text(seed: u32) -> String {
    let letter = |i: u32| char::from(b'a' + (i.wrapping_mul(i ^ seed) % 26) as u8);
    (0..1200).map(letter).collect()
}

fn command(folder: &Path, flags: &str) -> Command {
    let mut command = Command::cargo_bin("seeddelta-build").unwrap();
    command.current_dir(folder).args(["-i", "model.gguf", "-o", "out.gguf", "--policy", "auto"]);
    command.args(flags.split_whitespace());
    command
}

const MATERIAL: &str = "--text eval.txt --calib-text calib.txt --text-tokens 512 --base lowrank:4";

#[test]
fn layers_without_loss_are_coded_and_the_policy_is_kept() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_model(&path("model.gguf"));
    fs::write(path("eval.txt"), text(1)).unwrap();
    fs::write(path("calib.txt"), text(2)).unwrap();
    command(folder.path(), MATERIAL).assert().success();
    let coded = GgufFile::open(&path("out.gguf")).unwrap();
    for target in ["gate", "up", "down"] {
        assert!(coded.tensor(&format!("blk.1.ffn_{target}.base_u")).is_some(), "{target}");
    }
    assert!(coded.tensor("blk.0.ffn_down.weight").is_some());
    assert!(!path("out.gguf.seeddelta-trials").exists());
    let bytes = fs::read(path("out.gguf")).unwrap();

    // The policy is one that the program takes, and gives the same tensors.
    let again = "-i model.gguf -o again.gguf --policy out.gguf.policy.json".split(' ');
    let mut build = Command::cargo_bin("seeddelta-build").unwrap();
    build.current_dir(folder.path()).args(again).assert().success();
    assert_eq!(fs::read(path("again.gguf")).unwrap(), bytes);

    // Resumed it is not looked for again: the text is not even read.
    fs::remove_file(path("out.gguf")).unwrap();
    fs::write(path("eval.txt"), "short").unwrap();
    command(folder.path(), &format!("{MATERIAL} --resume")).assert().success();
    assert_eq!(fs::read(path("out.gguf")).unwrap(), bytes);
}

#[test]
fn what_is_wrong_is_said_before_the_search() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_model(&path("model.gguf"));
    let refused = |flags: &str, code: i32, part: &str| {
        let all = predicate::str::contains(part.to_owned());
        command(folder.path(), flags).assert().code(code).stderr(all);
        assert!(!path("out.gguf").exists() && !path("out.gguf.seeddelta-trials").exists());
    };
    refused("", 2, "--examples");
    refused("--text eval.txt", 2, "--calib-text");
    refused(&format!("{MATERIAL} --targets up"), 2, "--targets");
    refused(MATERIAL, 1, "eval.txt");
    fs::write(path("eval.txt"), text(1)).unwrap();
    fs::write(path("calib.txt"), "short").unwrap();
    refused(MATERIAL, 1, "calib.txt");
    fs::write(path("calib.txt"), text(2)).unwrap();
    refused(&format!("{MATERIAL} --layers 7"), 1, "--layers 7");
    refused(&format!("{MATERIAL} --layers 0"), 1, "no layer can be coded");
    // What a build would refuse is refused without a search.
    fs::create_dir(path("report")).unwrap();
    let at_once = |flags: &str, part: &str| {
        let said = command(folder.path(), &format!("{MATERIAL} {flags}")).assert().code(1);
        let text = String::from_utf8(said.get_output().stderr.clone()).unwrap();
        assert!(text.lines().count() == 1 && text.contains(part), "{text}");
    };
    at_once("--report-json report", "name a file");
    at_once("--imatrix none.gguf", "none.gguf");
    fs::create_dir(path("out.gguf.seeddelta-work")).unwrap();
    at_once("", "already exists");
    fs::remove_dir(path("out.gguf.seeddelta-work")).unwrap();
    fs::write(path("out.gguf"), "mine").unwrap();
    command(folder.path(), MATERIAL).assert().code(1).stderr(predicate::str::contains("--force"));
    assert_eq!(fs::read(path("out.gguf")).unwrap(), b"mine");
}
