//! llama-perplexity on coded files: the same figure whatever the batches, also with quantized caches.

use std::path::PathBuf;
use std::process::Command;

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused, command};
use fixtures::models::Model;
use ggml::Type;
use tempfile::TempDir;

/// Relative difference of perplexities between coded and dense model in the same batches: the order of
/// additions in the FFN.
const NOISE: f64 = 1e-5;

/// The same between batches: llama.cpp computes attention for single tokens in another way.
const NOISE_OF_BATCHES: f64 = 1e-3;

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    /// A coded model whose heads of 32 suit quantized caches, the same reconstructed, and a text.
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("base.gguf");
        Model { n_heads: 2, other_type: Type::F32, ..Model::default() }.write(&path).unwrap();
        let twins = Twins::of(&ModelFile::read(&path), &Coding::default());
        twins.coded.write(&folder.path().join("coded.gguf"));
        twins.dense.write(&folder.path().join("dense.gguf"));
        let words = (0..220).map(|i| ["one", "two", "or so", "many"][i * i % 7 % 4]);
        let text = words.collect::<Vec<_>>().join(" ");
        std::fs::write(folder.path().join("text.txt"), text).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, model: &str, flags: &str) -> Command {
        let (model, text) = (self.path(model), self.path("text.txt"));
        let fixed =
            ["-m", model.to_str().unwrap(), "-f", text.to_str().unwrap(), "-c", "256", "-t", "2"];
        command("llama-perplexity", fixed.into_iter().chain(flags.split_whitespace()))
    }

    /// The final estimate of the perplexity.
    fn perplexity(&self, model: &str, flags: &str) -> f64 {
        Self::estimate(&Run::to_the_end(self.command(model, flags)).ok())
    }

    fn estimate(run: &Run) -> f64 {
        let all = run.text() + &run.stderr;
        let (_, rest) = all.split_once("PPL = ").unwrap_or_else(|| panic!("no figure in:\n{all}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Checks that batches of any size give what the dense model has.
    fn assert_batches_agree(&self, caches: &str) {
        let whole = self.perplexity("dense.gguf", caches);
        for (batch, micro_batch) in [(1, 1), (7, 7), (512, 7), (512, 512)] {
            let flags = format!("-b {batch} -ub {micro_batch} {caches}");
            let expected = self.perplexity("dense.gguf", &flags);
            let found = self.perplexity("coded.gguf", &format!("--statecells {flags}"));
            assert!((found / expected - 1.0).abs() < NOISE, "{flags}: {found}, not {expected}");
            assert!(
                (found / whole - 1.0).abs() < NOISE_OF_BATCHES,
                "{flags}: {found}, not {whole}"
            );
        }
    }
}

#[test]
fn batches_do_not_matter() {
    Fixture::new().assert_batches_agree("");
}

#[test]
fn batches_do_not_matter_with_quantized_caches() {
    Fixture::new().assert_batches_agree("-ctk q8_0 -ctv q8_0 -fa on");
}

/// Without this the tests above could pass because the text fits all models alike.
#[test]
fn another_model_has_another_perplexity() {
    let fixture = Fixture::new();
    let (dense, base) = (fixture.perplexity("dense.gguf", ""), fixture.perplexity("base.gguf", ""));
    assert!((dense / base - 1.0).abs() > 10.0 * NOISE_OF_BATCHES, "{dense} and {base}");
}

/// Batches by decoding, whatever the machine would choose, in micro-batches, so that tiles are asked for again.
#[test]
fn decoded_tiles_that_are_kept_change_nothing_and_are_told() {
    let fixture = Fixture::new();
    let base = ModelFile::read(&fixture.path("base.gguf"));
    let coded = Twins::of(&base, &Coding::sections(0.001)).coded;
    coded.write(&fixture.path("sections.gguf"));
    let decoding = |flags: &str| {
        let mut command = fixture.command("sections.gguf", &format!("--statecells -ub 64 {flags}"));
        command.env("STATECELLS_BATCH", "decode");
        Run::to_the_end(command)
    };
    assert_refused(&decoding("--statecells-cache -1"), &["--statecells-cache", "at least 0"]);
    let plain = decoding("--statecells-cache 0").ok();
    assert!(!plain.stderr.contains("statecells: cache"));
    let cached = decoding("--statecells-cache 16").ok();
    let said = cached.line(&["statecells: cache", "of 16 MiB", "% hits"]);
    assert!(!said.contains(" 0 % hits"), "{said}");
    assert_eq!(Fixture::estimate(&cached), Fixture::estimate(&plain));
}
