//! `--seeddelta` in llama.cpp's programs, and the tiny transformer's vocabulary there.

use std::path::Path;

use end_to_end::coding::{Coding, Twins};
use end_to_end::logits::load_dense;
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused};
use fixtures::models::Model;
use tempfile::TempDir;

const GENERATE: &str = "-no-cnv -p hello -n 24 --temp 0 --ignore-eos -c 128 -t 2 --no-warmup";

fn run(program: &str, file: &Path, flags: &str) -> Run {
    let flags = flags.split_whitespace().map(str::to_owned);
    let all = ["-m".to_owned(), file.display().to_string()].into_iter().chain(flags);
    Run::of(program, all)
}

#[test]
fn the_flag_decides_and_a_file_without_dense_weights_names_it() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    Model::default().write(&path("base.gguf")).unwrap();
    let base = ModelFile::read(&path("base.gguf"));
    let coding = Coding::seeddelta("lowrank:5", false);
    let twins = Twins::of(&base, &coding);
    twins.coded.write(&path("drop.gguf"));
    twins.dense.write(&path("dense.gguf"));
    Twins::of(&base, &Coding { keep_dense: true, ..coding }).coded.write(&path("keep.gguf"));

    let text = |file: &str, flags: &str| {
        run("llama-completion", &path(file), &format!("{GENERATE} {flags}")).ok().stdout
    };
    assert_eq!(text("drop.gguf", "--seeddelta"), text("dense.gguf", ""));
    assert_eq!(text("keep.gguf", "--seeddelta"), text("dense.gguf", ""));
    assert_eq!(text("keep.gguf", ""), text("base.gguf", ""));
    assert_ne!(text("dense.gguf", ""), text("base.gguf", ""), "nothing was compared");
    for flags in ["", "--statecells"] {
        let refused = run("llama-completion", &path("drop.gguf"), &format!("{GENERATE} {flags}"));
        assert_refused(&refused, &["blk.0.ffn_gate.weight", "seeddelta", "run with --seeddelta"]);
    }
}

#[test]
fn llama_cpp_cuts_texts_into_the_tokens_that_the_tiny_model_was_trained_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = lab::tiny::model::Config {
        n_layers: 1,
        n_embd: 16,
        n_ff: 32,
        n_heads: 2,
        ..Default::default()
    };
    let model = lab::tiny::model::Model::new(config, 1).unwrap();
    lab::tiny::export::write(&model, &path).unwrap();
    let llama = load_dense(&path).unwrap();
    let sizes = lab::tiny::dataset::Sizes { train: 300, validation: 20, test: 20 };
    let lines = lab::tiny::dataset::generate(5, sizes).unwrap().into_iter().flatten();
    let others =
        ["", " ", "Hello, World!\n", "\u{e9}\u{20ac} \u{1f600}", "<s>", "\t\0"].map(str::to_owned);
    for text in lines.flat_map(|e| [e.line(), e.prompt]).chain(others) {
        let found = llama.tokenize(&text, true, false);
        if text.contains('\0') && found.is_err() {
            continue; // not a C string
        }
        let expected = lab::tiny::vocabulary::tokenize(&text);
        let expected: Vec<i32> =
            std::iter::once(1).chain(expected.into_iter().map(|t| t as i32)).collect();
        assert_eq!(found.unwrap(), expected, "{text:?}");
    }
}
