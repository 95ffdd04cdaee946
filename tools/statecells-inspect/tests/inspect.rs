//! The program on plain, coded and strange files.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output};

use fixtures::models::{Model, write_imatrix};
use format::{MatrixId, Role, keys};
use ggml::Type;
use ggml::gguf::{GgufWriter, WriteError};
use inspect::Inspection;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A folder with `model.gguf`, a plain model.
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        Model::default().write(&fixture.path("model.gguf")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, flags: &str) -> Output {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("statecells-inspect"));
        command.current_dir(self.dir.path()).args(flags.split_whitespace()).output().unwrap()
    }

    fn text(&self, flags: &str) -> String {
        let output = self.run(flags);
        assert!(output.status.success(), "{flags}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, flags: &str) -> Inspection {
        serde_json::from_str(&self.text(&format!("{flags} --json"))).unwrap()
    }

    fn fails(&self, flags: &str, code: i32, parts: &[&str]) {
        let output = self.run(flags);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags}: {text}");
        assert!(parts.iter().all(|p| text.contains(p)), "{flags}: {text}");
        assert!(code != 1 || text.lines().count() == 1, "{flags}: {text}");
    }

    /// A file with the tensors given, all zeros.
    fn write(
        &self,
        name: &str,
        metadata: impl FnOnce(&mut GgufWriter) -> Result<(), WriteError>,
        tensors: &[(&str, Type, &[usize])],
    ) {
        let mut writer = GgufWriter::new();
        metadata(&mut writer).unwrap();
        for (name, ty, dims) in tensors {
            writer.add_tensor(name, *ty, dims).unwrap();
        }
        let zeros = |i: usize| vec![0; tensors[i].1.tensor_bytes(tensors[i].2).unwrap()];
        let out = File::create(self.path(name)).unwrap();
        writer.write(out, |i, out| out.write_all(&zeros(i))).unwrap();
    }

    /// `coded.gguf`: one matrix of each kind.
    fn write_coded(&self) {
        let [up, down] = [Role::Up, Role::Down].map(|role| MatrixId { layer: 0, role });
        let metadata = |w: &mut GgufWriter| {
            w.set("general.architecture", "llama")?;
            w.set("llama.block_count", 1u32)?;
            w.set("llama.embedding_length", 60u32)?;
            w.set("llama.feed_forward_length", 100u32)?;
            w.set(keys::ENABLED, true)?;
            w.set(keys::VERSION, 1u32)?;
            w.set(keys::SCHEME, "sign+row_scale")?;
            w.set(keys::DEFAULT_GAP_TOL, f32::INFINITY)?;
            w.set(keys::RECORD, r#"{"tool": "a tool", "arguments": {"--seed": "7"}}"#)?;
            w.set(&keys::tensor_scheme(up), "sign+row_scale")?;
            w.set(&keys::tensor_scheme(down), "sections")?;
            w.set(&keys::tensor_gap(up), 0.25f32)
        };
        self.write(
            "coded.gguf",
            metadata,
            &[
                ("blk.0.ffn_gate.weight", Type::F16, &[60, 100]),
                ("blk.0.ffn_up.weight", Type::F16, &[60, 100]),
                ("blk.0.ffn_up.dict", Type::F16, &[60, 32]),
                ("blk.0.ffn_up.codes", Type::I16, &[4, 100]),
                ("blk.0.ffn_up.row_scale", Type::F16, &[100]),
                // The sections layout: padded to 13 blocks of inputs and 2 tiles of rows.
                ("blk.0.ffn_down.dict", Type::F16, &[8, 16, 6]),
                ("blk.0.ffn_down.codes", Type::I8, &[2 * 13 * 3 * 32]),
                ("blk.0.ffn_down.row_scale", Type::F16, &[60]),
                ("output_norm.weight", Type::F32, &[60]),
            ],
        );
    }
}

#[test]
fn a_plain_model_is_listed_with_its_sizes() {
    let fixture = Fixture::new();
    let file = fixture.json("model.gguf");
    assert_eq!((file.architecture.as_deref(), file.n_layers), (Some("llama"), 2));
    assert!(file.coding.is_none());
    assert_eq!((file.totals.n_coded, file.totals.n_dense), (0, 6));
    assert_eq!(file.totals.ffn_bytes, 6 * 64 * 192 * 4);
    assert_eq!(file.totals.ffn_bits_per_weight, 32.0);
    let [gate, down] = [0, 5].map(|i| &file.tensors[i]);
    assert_eq!((gate.q5_k_m_type.as_deref(), gate.bytes_q5_k_m), (Some("q5_1"), 192 * 48));
    assert_eq!((down.q5_k_m_type.as_deref(), down.bytes_q5_k_m), (Some("q8_0"), 64 * 204));
    assert_eq!(file.file_bytes, fixture.path("model.gguf").metadata().unwrap().len());
}

#[test]
fn a_coded_file_is_listed_with_its_scheme_and_gap() {
    let fixture = Fixture::new();
    fixture.write_coded();
    let file = fixture.json("coded.gguf");
    let [gate, up, down] = [0, 1, 2].map(|i| &file.tensors[i]);
    assert_eq!((gate.scheme.as_deref(), gate.dense_type.as_deref()), (None, Some("f16")));
    assert_eq!(up.scheme.as_deref(), Some("sign+row_scale"));
    assert_eq!((up.settings["M"], up.settings["k"], up.gap), (32, 4, Some(0.25)));
    assert_eq!(up.bytes_sidecars, 2 * (60 * 32 + 4 * 100 + 100));
    assert_eq!(up.bytes, up.bytes_sidecars + 2 * 60 * 100);
    assert_eq!((down.d_in, down.d_out, down.settings["S"]), (Some(100), Some(60), 6));
    assert_eq!(down.dense_type, None);
    assert_eq!((file.totals.n_coded, file.totals.n_dense), (2, 1));
    assert_eq!(file.totals.other_bytes, 240);
    let coding = file.coding.unwrap();
    assert_eq!((coding.format_version, coding.default_gap_tol), (Some(1), None));
    assert_eq!(coding.record.unwrap()["tool"], "a tool");
    let text = fixture.text("coded.gguf");
    for part in ["sign+row_scale", "M 32, k 4", "S 6", "0.2500", "60 x 100", "--seed 7", "Q5_K_M"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains('\u{1b}'), "a pipe gets no colours");
}

/// Base and delta as `seeddelta-build` writes them, without any metadata of the model's shape.
#[test]
fn a_file_by_seeddelta_is_listed_with_its_parts() {
    let fixture = Fixture::new();
    let [gate, up, down] =
        [Role::Gate, Role::Up, Role::Down].map(|role| MatrixId { layer: 0, role });
    let metadata = |w: &mut GgufWriter| {
        w.set("general.architecture", "llama")?;
        w.set("llama.feed_forward_length", 100u32)?;
        w.set(keys::SCHEME, format::seeddelta::SCHEME)?;
        w.set(&keys::tensor_gap(gate), 0.5f32)?;
        [gate, up, down]
            .iter()
            .try_for_each(|t| w.set(&keys::tensor_scheme(*t), format::seeddelta::SCHEME))
    };
    let tensors: [(&str, Type, &[usize]); 8] = [
        ("blk.0.ffn_gate.base_v", Type::F16, &[60, 4]),
        ("blk.0.ffn_gate.base_u", Type::F16, &[4, 100]),
        ("blk.0.ffn_gate.delta_idx", Type::I16, &[5, 100]),
        ("blk.0.ffn_gate.delta_val", Type::F16, &[5, 100]),
        ("blk.0.ffn_up.base_v", Type::F32, &[60]),
        ("blk.0.ffn_up.base_u", Type::F32, &[1, 100]),
        ("blk.0.ffn_down.base_block", Type::F16, &[10, 10, 10]),
        ("blk.0.ffn_down.row_scale", Type::F16, &[60]),
    ];
    fixture.write("delta.gguf", metadata, &tensors);
    let file = fixture.json("delta.gguf");
    let [gate, up, down] = [0, 1, 2].map(|i| &file.tensors[i]);
    for tensor in [gate, up, down] {
        assert_eq!(tensor.scheme.as_deref(), Some("seeddelta"), "{tensor:?}");
    }
    assert_eq!((gate.d_in, gate.d_out, gate.gap), (Some(60), Some(100), Some(0.5)));
    assert_eq!((gate.settings["lowrank"], gate.settings["K"]), (4, 5));
    assert_eq!(gate.bytes, 2 * (60 * 4 + 4 * 100 + 5 * 100 + 5 * 100));
    assert_eq!((up.d_in, up.d_out), (Some(60), Some(100)));
    assert_eq!((up.settings["lowrank"], up.settings["K"]), (1, 0));
    assert_eq!((down.d_in, down.d_out, down.settings["block"]), (Some(100), Some(60), 10));
    assert_eq!((file.totals.n_coded, file.totals.n_dense, file.totals.other_bytes), (3, 0, 0));
    assert!(file.coding.is_some());
    let text = fixture.text("delta.gguf");
    for part in ["seeddelta", "K 5, lowrank 4", "0.5000", "60 x 100", "3 coded, 0 dense"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn filters_choose_tensors_and_keep_the_file_totals() {
    let fixture = Fixture::new();
    let all = fixture.json("model.gguf");
    let some = fixture.json("model.gguf --layers 1 --targets up,down");
    let names: Vec<&str> = some.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["blk.1.ffn_up", "blk.1.ffn_down"]);
    assert_eq!(some.totals.tensor_bytes, all.totals.tensor_bytes);
    assert_eq!(some.totals.ffn_bytes * 3, all.totals.ffn_bytes);
}

#[test]
fn the_kv_cache_follows_context_and_types() {
    let fixture = Fixture::new();
    let kv = |flags: &str| fixture.json(&format!("model.gguf {flags}")).memory.unwrap();
    // 2 layers, 64 keys and 64 values per token, 512 tokens.
    assert_eq!(kv("").kv_cache.bytes, 2 * 512 * (64 + 64) * 2);
    assert_eq!(kv("--ctx 1000").kv_cache.bytes, 2 * 1024 * (64 + 64) * 2);
    assert_eq!(kv("-ctk q8_0").kv_cache.bytes, 2 * 512 * (68 + 128));
    assert_eq!(kv("-ctk q8_0 --ctv q4_0").kv_cache.bytes, 2 * 512 * (68 + 36));
    let memory = kv("--ctx 4096");
    assert_eq!(memory.total_bytes, memory.weights_bytes + memory.kv_cache.bytes);
    let metadata = |w: &mut GgufWriter| {
        w.set("llama.attention.head_count_kv", vec![0u32, 2])?;
        w.set("llama.attention.sliding_window", 128u32)
    };
    let path = fixture.path("gqa.gguf");
    Model::default().write_with(&path, metadata, |_, _| {}).unwrap();
    let kv = fixture.json("gqa.gguf").memory.unwrap().kv_cache;
    assert_eq!((kv.bytes, kv.is_upper_bound), (512 * (32 + 32) * 2, true));
}

#[test]
fn two_files_are_compared_tensor_by_tensor() {
    let fixture = Fixture::new();
    fixture.write_coded();
    let text = fixture.text("coded.gguf --compare model.gguf");
    for part in
        ["A: coded.gguf", "B: model.gguf", "sign+row_scale beside f16", "blk.1.ffn_up", "A saves"]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&fixture.text("coded.gguf --compare model.gguf --json")).unwrap();
    assert_eq!(json["file"]["path"], "coded.gguf");
    assert_eq!(json["other"]["totals"]["n_dense"], 6);
}

#[test]
fn files_that_are_no_models_are_described_too() {
    let fixture = Fixture::new();
    let entries = [("blk.0.ffn_up.weight".to_owned(), vec![1.0; 8])];
    write_imatrix(&fixture.path("imatrix.gguf"), &entries, 3.0).unwrap();
    let file = fixture.json("imatrix.gguf");
    assert!(file.tensors.is_empty() && file.memory.is_none());
    assert!(fixture.text("imatrix.gguf").contains("no model"));
}

#[test]
fn numbers_that_are_only_claimed_cost_nothing() {
    let fixture = Fixture::new();
    let metadata = |w: &mut GgufWriter| {
        w.set("llama.block_count", u32::MAX)?;
        w.set("llama.context_length", u64::MAX)?;
        w.set("llama.attention.key_length", u32::MAX)?;
        w.set(keys::ENABLED, "yes")?;
        w.set(keys::RECORD, "no json")
    };
    Model::default().write_with(&fixture.path("odd.gguf"), metadata, |_, _| {}).unwrap();
    let file = fixture.json("odd.gguf");
    assert_eq!(file.tensors.len(), 6);
    assert!(file.memory.is_none());
    assert!(fixture.text("odd.gguf").contains("Record: \"no json\""));
}

#[test]
fn rejects_bad_input() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("text.txt"), "no model").unwrap();
    fixture.fails("none.gguf", 1, &["statecells-inspect: error: none.gguf", "check the path"]);
    fixture.fails("text.txt", 1, &["error: text.txt", "not a GGUF"]);
    fixture.fails("model.gguf --compare text.txt", 1, &["text.txt"]);
    fixture.fails("model.gguf --layers 2", 1, &["--layers 2", "numbered 0 to 1"]);
    fixture.fails("model.gguf --ctk q4_K", 2, &["f16", "q8_0"]);
    fixture.fails("model.gguf --ctx 0", 2, &["--ctx"]);
    fixture.fails("", 2, &["FILE"]);
    let metadata = |w: &mut GgufWriter| w.set("llama.attention.key_length", 10u32);
    Model::default().write_with(&fixture.path("odd.gguf"), metadata, |_, _| {}).unwrap();
    fixture.fails("odd.gguf -ctk q8_0", 1, &["--ctk q8_0", "40 entries", "f16"]);
}

#[test]
fn version_help_and_completions() {
    let fixture = Fixture::new();
    assert!(fixture.text("--version").contains("llama.cpp"));
    assert!(fixture.text("--help").contains("-ctk q8_0"));
    assert!(fixture.text("--completions bash").contains("--compare"));
}
