//! LoRA adapters on coded matrices act as on the dense reconstruction.

use std::path::{Path, PathBuf};

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::{ModelFile, Tensor};
use end_to_end::programs::{Run, assert_refused};
use fixtures::models::{Model, Spectrum, random_matrix};
use format::MatrixShape;
use ggml::Type;
use tempfile::TempDir;

/// Rank of the adapters.
const RANK: usize = 4;

/// Mean Kullback-Leibler divergence that rounding leaves: logits of the size 1 that differ by 1e-3 give 1e-6.
const SAME: f64 = 1e-5;

/// An adapter that does something must move the model this far.
const OTHER: f64 = 1e-2;

struct Fixture {
    folder: TempDir,
    base: ModelFile,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("base.gguf");
        Model { other_type: Type::F32, ..Model::default() }.write(&path).unwrap();
        let base = ModelFile::read(&path);
        let twins = Twins::of(&base, &Coding::default());
        twins.coded.write(&folder.path().join("coded.gguf"));
        twins.dense.write(&folder.path().join("dense.gguf"));
        std::fs::write(folder.path().join("text.txt"), "a text of some length, ".repeat(30))
            .unwrap();
        Self { folder, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an adapter for the weights `names`.
    fn adapter(&self, file: &str, names: &[&str]) -> PathBuf {
        let mut adapter = ModelFile::default();
        adapter.set("general.type", "adapter");
        adapter.set("general.architecture", "llama");
        adapter.set("adapter.type", "lora");
        adapter.set("adapter.lora.alpha", RANK as f32);
        for name in names {
            let MatrixShape { d_in, d_out } = self.base.tensor(name).shape();
            for (part, dims) in [("a", [d_in, RANK]), ("b", [RANK, d_out])] {
                let shape = MatrixShape::new(dims[0], dims[1]);
                let values = random_matrix(shape, Spectrum::Flat, 5);
                adapter.tensors.push(Tensor::from_f32(
                    &format!("{name}.lora_{part}"),
                    &dims,
                    &values,
                ));
            }
        }
        let path = self.path(file);
        adapter.write(&path);
        path
    }

    /// Runs llama-perplexity on `model`.
    fn perplexity(&self, model: &str, flags: &str) -> Run {
        let fixed = format!("-f {} -c 64 -b 64 -t 2", self.path("text.txt").display());
        let model = self.path(model);
        let model = ["-m", model.to_str().unwrap()];
        let flags = fixed.split(' ').chain(flags.split_whitespace());
        Run::of("llama-perplexity", model.into_iter().chain(flags)).ok()
    }

    /// Mean divergence of what `found` predicts from what `expected` does, each a model with flags.
    fn divergence(&self, expected: (&str, &str), found: (&str, &str)) -> f64 {
        let logits = self.path("logits");
        let logits = logits.display();
        let _ = self.perplexity(expected.0, &format!("{} --save-all-logits {logits}", expected.1));
        let flags = format!("{} --kl-divergence --kl-divergence-base {logits}", found.1);
        mean_divergence(&self.perplexity(found.0, &flags).text())
    }

    fn generated(&self, model: &str, flags: &str) -> Vec<u8> {
        let fixed = "-no-cnv -p hello -n 24 --temp 0 --ignore-eos -c 128 -t 2 --no-warmup";
        let model = self.path(model);
        let model = ["-m", model.to_str().unwrap()];
        let flags = fixed.split(' ').chain(flags.split_whitespace());
        Run::of("llama-completion", model.into_iter().chain(flags)).ok().stdout
    }
}

/// The number in `Mean    KLD:   0.000001 +- ...`.
fn mean_divergence(text: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with("Mean    KLD:"));
    let line = line.unwrap_or_else(|| panic!("no divergence in:\n{text}"));
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

fn flag(adapter: &Path) -> String {
    format!("--lora {}", adapter.display())
}

const FFN: [&str; 4] = [
    "blk.0.ffn_gate.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",
    "blk.1.ffn_down.weight",
];

#[test]
fn adapters_act_on_coded_matrices_as_on_dense_ones() {
    let fixture = Fixture::new();
    let sets: [(&str, &[&str]); 3] = [
        ("down.gguf", &["blk.0.ffn_down.weight"]),
        ("ffn.gguf", &FFN),
        ("mixed.gguf", &["blk.1.attn_q.weight", "blk.1.ffn_up.weight"]),
    ];
    for (name, weights) in sets {
        let lora = flag(&fixture.adapter(name, weights));
        let coded = format!("--statecells {lora}");
        let same = fixture.divergence(("dense.gguf", &lora), ("coded.gguf", &coded));
        assert!(same.abs() < SAME, "{name}: {same}");
        let other = fixture.divergence(("coded.gguf", &coded), ("coded.gguf", "--statecells"));
        assert!(other > OTHER, "{name}: {other}");
    }
}

#[test]
fn generated_text_is_that_of_the_dense_model() {
    let fixture = Fixture::new();
    let lora = flag(&fixture.adapter("ffn.gguf", &FFN));
    let coded = fixture.generated("coded.gguf", &format!("--statecells {lora}"));
    assert_eq!(coded, fixture.generated("dense.gguf", &lora));
    assert_ne!(coded, fixture.generated("coded.gguf", "--statecells"));
}

#[test]
fn the_scale_of_an_adapter_counts() {
    let fixture = Fixture::new();
    let path = fixture.adapter("ffn.gguf", &FFN);
    let scaled = |scale: &str| format!("--lora-scaled {}:{scale}", path.display());
    let coded = |scale: &str| format!("--statecells {}", scaled(scale));
    let same = fixture.divergence(("dense.gguf", &scaled("0.5")), ("coded.gguf", &coded("0.5")));
    assert!(same.abs() < SAME, "{same}");
    let off = fixture.divergence(("coded.gguf", "--statecells"), ("coded.gguf", &coded("0")));
    assert!(off.abs() < SAME, "{off}");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.adapter("ffn.gguf", &["blk.0.ffn_down.weight"]);
    let mut adapter = ModelFile::read(&path);
    adapter.tensors[0].dims = vec![96, 2 * RANK];
    adapter.write(&path);
    let model = fixture.path("coded.gguf");
    let arguments = ["-m", model.to_str().unwrap(), "--statecells", "-p", "x", "-n", "1", "--lora"];
    let run = Run::of("llama-completion", arguments.into_iter().chain([path.to_str().unwrap()]));
    assert_refused(&run, &["blk.0.ffn_down.weight", "shape"]);
}
