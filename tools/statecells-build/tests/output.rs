//! What a build writes: tensors, metadata, report, table; the same bytes for any number of threads.

mod common;

use builder::report::{BuildReport, Origin};
use common::{Fixture, QUICK, fails, stderr, stdout, succeeds};
use dictionary::{GlobalCodec, GlobalParams};
use fixtures::models::{Model, write_imatrix};
use format::{MatrixId, Role, Sidecar, keys};
use ggml::Type;
use ggml::gguf::GgufFile;
use numerics::Codec;
use program::table::bytes;

const GATE: MatrixId = MatrixId { layer: 0, role: Role::Gate };

fn open(fixture: &Fixture, name: &str) -> GgufFile {
    GgufFile::open(&fixture.path(name)).unwrap()
}

fn names(file: &GgufFile) -> Vec<&str> {
    file.tensors().iter().map(|t| t.name()).collect()
}

fn report(fixture: &Fixture, name: &str) -> BuildReport {
    serde_json::from_slice(&fixture.bytes(name)).unwrap()
}

#[test]
fn sidecars_stand_in_the_place_of_the_dense_weights() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "--layers 1 --targets up,down");
    let (source, out) = (open(&fixture, "model.gguf"), open(&fixture, "out.gguf"));
    let expected: Vec<String> = names(&source)
        .into_iter()
        .flat_map(|name| match name {
            "blk.1.ffn_up.weight" | "blk.1.ffn_down.weight" => {
                let stem = name.strip_suffix(".weight").unwrap();
                ["dict", "codes", "row_scale"].map(|s| format!("{stem}.{s}")).to_vec()
            }
            other => vec![other.to_owned()],
        })
        .collect();
    assert_eq!(names(&out), expected);
    for tensor in source.tensors() {
        if let Some(copy) = out.tensor(tensor.name()) {
            assert_eq!(out.data(copy), source.data(tensor), "{}", tensor.name());
        }
    }
    let dict = out.tensor("blk.1.ffn_up.dict").unwrap();
    assert_eq!((dict.ty(), dict.dims()), (Type::F16, [64, 24].as_slice()));
    let codes = out.tensor("blk.1.ffn_down.codes").unwrap();
    assert_eq!((codes.ty(), codes.dims()), (Type::I16, [4, 64].as_slice()));
}

#[test]
fn metadata_is_copied_and_completed() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "--scheme sign+vals --gap-tol 0.99 --dict-M-down 40");
    let (source, out) = (open(&fixture, "model.gguf"), open(&fixture, "out.gguf"));
    for key in source.keys() {
        assert_eq!(out.value(&key), source.value(&key), "{key}");
    }
    assert_eq!(out.bool(keys::ENABLED).unwrap(), Some(true));
    assert_eq!(out.u32(keys::VERSION).unwrap(), Some(keys::FORMAT_VERSION));
    assert_eq!(out.string(keys::SCHEME).unwrap().as_deref(), Some("sign+vals"));
    assert_eq!(out.u32(keys::DICT_M).unwrap(), Some(40));
    assert_eq!(out.u32(keys::DICT_K).unwrap(), Some(4));
    assert_eq!(out.u32(keys::DICT_ITERS).unwrap(), Some(1));
    assert!(out.f32(keys::DICT_ETA).unwrap().unwrap() > 0.0);
    assert_eq!(out.f32(keys::DEFAULT_GAP_TOL).unwrap(), Some(0.99));
    assert_eq!(out.string(&keys::tensor_scheme(GATE)).unwrap().as_deref(), Some("sign+vals"));
    let (weights, sidecars) = (192 * 64, 2 * (64 * 24 + 2 * 4 * 192));
    let bpw = out.f32(&keys::tensor_bpw(GATE)).unwrap().unwrap();
    assert_eq!(bpw, 8.0 * sidecars as f32 / weights as f32);
    let per_layer = 2 * sidecars + 2 * (192 * 40 + 2 * 4 * 64);
    let saved = 2.0 * (3.0 * 4.0 * f64::from(weights) - f64::from(per_layer)) / 1e9;
    assert_eq!(out.f32(keys::MEM_SAVED_GB).unwrap(), Some(saved as f32));
}

#[test]
fn the_recorded_gap_is_that_of_the_decoded_sidecars() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "--report-json report.json --eval-cols 4000");
    let (source, out) = (open(&fixture, "model.gguf"), open(&fixture, "out.gguf"));
    let dense = source.tensor(&GATE.weight()).unwrap();
    let shape = dense.matrix_shape().unwrap();
    let params = GlobalParams { m: Some(24), k: 4, ..GlobalParams::default() };
    let sidecars: Vec<Sidecar> = params
        .sidecars(shape)
        .unwrap()
        .into_iter()
        .map(|spec| {
            let tensor = out.tensor(&GATE.with_suffix(spec.suffix)).unwrap();
            Sidecar { spec, data: out.data(tensor).to_vec() }
        })
        .collect();
    let weights = source.to_f32(dense).unwrap();
    let approx = GlobalCodec::new(params).decode(&sidecars, shape).unwrap();
    let (mut error, mut energy) = (0.0, 0.0);
    for (w, a) in weights.iter().zip(&approx) {
        error += f64::from(w - a).powi(2);
        energy += f64::from(*w).powi(2);
    }
    let gap = (error / energy).sqrt();
    let recorded = f64::from(out.f32(&keys::tensor_gap(GATE)).unwrap().unwrap());
    assert!((recorded - gap).abs() < 1e-5 * gap, "{recorded} {gap}");
    let tensor = &report(&fixture, "report.json").tensors[0];
    assert_eq!(tensor.gap_recorded, Some(recorded));
    // 4000 inputs, each a sum over 192 outputs: the measured gap is within a few percent.
    assert!((tensor.gap_eval.unwrap() / gap - 1.0).abs() < 0.05, "{:?} {gap}", tensor.gap_eval);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let fixture = Fixture::new(&Model { ffn_type: Type::Q4_0, ..Model::default() });
    for scheme in ["sign", "sign+row_scale", "sign+vals"] {
        for encoder in ["topk", "omp"] {
            let outputs = ["1", "2", "3"].map(|threads| {
                let flags = format!("--force --scheme {scheme} --encoder {encoder} -t {threads}");
                fixture.build("out.gguf", &flags);
                fixture.bytes("out.gguf")
            });
            assert!(outputs.iter().all(|o| *o == outputs[0]), "{scheme}, {encoder}");
        }
    }
}

#[test]
fn a_tensor_is_coded_alike_whatever_is_coded_with_it() {
    let fixture = Fixture::small();
    fixture.build("all.gguf", "");
    fixture.build("one.gguf", "--layers 1 --targets down");
    let (all, one) = (open(&fixture, "all.gguf"), open(&fixture, "one.gguf"));
    for suffix in ["dict", "codes", "row_scale"] {
        let data = |file: &GgufFile| {
            file.data(file.tensor(&format!("blk.1.ffn_down.{suffix}")).unwrap()).to_vec()
        };
        assert_eq!(data(&all), data(&one), "{suffix}");
    }
}

#[test]
fn every_weight_type_and_a_model_without_gate_are_coded() {
    for name in ["f32", "f16", "bf16", "q4_0", "q5_1", "q8_0", "q4_K", "q6_K", "iq4_nl"] {
        let ffn_type = Type::from_name(name).unwrap();
        let model = Model { ffn_type, n_embd: 256, n_ff: 256, n_layers: 1, ..Model::default() };
        let fixture = Fixture::new(&model);
        fixture.build("out.gguf", "--report-json report.json");
        assert!(report(&fixture, "report.json").tensors.iter().all(|t| t.source_type == name));
    }
    let fixture = Fixture::new(&Model { has_gate: false, ..Model::default() });
    fixture.build("out.gguf", "");
    assert!(open(&fixture, "out.gguf").tensor("blk.0.ffn_up.codes").is_some());
}

#[test]
fn a_gap_above_the_tolerance_keeps_the_dense_weight() {
    let fixture = Fixture::small();
    fixture.build("out.gguf", "--report-json a.json");
    let mut gaps: Vec<f64> =
        report(&fixture, "a.json").tensors.iter().map(|t| t.gap_recorded.unwrap()).collect();
    gaps.sort_by(f64::total_cmp);
    let tolerance = (gaps[2] + gaps[3]) / 2.0;
    fixture.build("tol.gguf", &format!("--gap-tol {tolerance} --report-json b.json"));
    let (out, second) = (open(&fixture, "tol.gguf"), report(&fixture, "b.json"));
    assert_eq!((second.totals.n_coded, second.totals.n_dense), (3, 3));
    for tensor in &second.tensors {
        let is_coded = tensor.gap_recorded.unwrap() <= tolerance;
        assert_eq!(tensor.scheme.is_some(), is_coded, "{}", tensor.name);
        assert_eq!(out.tensor(&tensor.name).is_none(), is_coded, "{}", tensor.name);
    }
    // A tolerance that nothing meets leaves the model as it was.
    fixture.build("dense.gguf", "--gap-tol 0");
    let dense = open(&fixture, "dense.gguf");
    assert_eq!(dense.bool(keys::ENABLED).unwrap(), Some(false));
    assert_eq!(names(&dense), names(&open(&fixture, "model.gguf")));
}

#[test]
fn dense_weights_stay_on_request() {
    let fixture = Fixture::small();
    fixture.build("keep.gguf", "--dense keep --report-json keep.json");
    let (source, out) = (open(&fixture, "model.gguf"), open(&fixture, "keep.gguf"));
    for tensor in source.tensors() {
        assert_eq!(out.data(out.require_tensor(tensor.name()).unwrap()), source.data(tensor));
    }
    assert!(out.tensor("blk.0.ffn_gate.codes").is_some());
    assert!(out.f32(keys::MEM_SAVED_GB).unwrap().unwrap() < 0.0);
    assert!(report(&fixture, "keep.json").totals.saved_of_source < 0.0);
}

#[test]
fn a_dry_run_writes_nothing_and_says_what_a_build_will_need() {
    let fixture = Fixture::small();
    let flags: Vec<&str> = QUICK.to_vec();
    let dry =
        succeeds(fixture.plain("-i model.gguf --dry-run --layers 0 --row-scale").args(&flags));
    assert_eq!(fixture.names(), ["model.gguf"]);
    fixture.build("out.gguf", "--layers 0 --report-json report.json");
    let (text, report) = (stdout(&dry), report(&fixture, "report.json"));
    for tensor in &report.tensors {
        let stem = tensor.name.strip_suffix(".weight").unwrap();
        let line = text.lines().find(|l| l.contains(stem)).unwrap();
        for bytes in [tensor.bytes, tensor.bytes_source, tensor.bytes_q5_k_m] {
            assert!(line.contains(&program::table::bytes(bytes)), "{bytes} is not in: {line}");
        }
    }
    let total = text.lines().find(|l| l.contains("3 tensors")).unwrap();
    assert!(total.contains(&program::table::bytes(report.totals.bytes)), "{total}");
    assert!(total.contains(&program::table::bytes(report.totals.bytes_q5_k_m)), "{total}");
}

#[test]
fn the_report_adds_up() {
    let fixture = Fixture::small();
    let output = succeeds(&mut fixture.quick("-i model.gguf -o out.gguf --report-json r.json"));
    let report = report(&fixture, "r.json");
    assert_eq!(report.schema_version, builder::report::SCHEMA_VERSION);
    assert_eq!(report.tensors.len(), 6);
    assert!(report.tensors.iter().all(|t| t.origin == Origin::Built && t.errors.gap_w.is_none()));
    assert_eq!(report.totals.bytes, report.tensors.iter().map(|t| t.bytes).sum::<u64>());
    assert_eq!(report.output.bytes, fixture.bytes("out.gguf").len() as u64);
    assert_eq!(report.arguments["--dict-M-gate"], "24");
    let gap = report.totals.errors.gap.unwrap();
    let gaps = || report.tensors.iter().map(|t| t.errors.gap.unwrap());
    assert!(gaps().any(|g| g <= gap) && gaps().any(|g| g >= gap));
    let text = stdout(&output);
    assert!(text.contains("blk.1.ffn_down") && text.contains("6 tensors coded"), "{text}");
    assert!(!text.contains('\u{1b}'), "a pipe gets no colours");
}

#[test]
fn an_imatrix_weighs_learning_and_the_recorded_gap() {
    let fixture = Fixture::small();
    let entries: Vec<(String, Vec<f32>)> = (0..2)
        .flat_map(|layer| Role::PLAIN.map(|role| MatrixId { layer, role }))
        .map(|tensor| {
            let n = if tensor.role == Role::Down { 192 } else { 64 };
            let mean_squares = (0..n).map(|i| if i % 4 == 0 { 50.0 } else { 0.1 }).collect();
            (tensor.weight(), mean_squares)
        })
        .collect();
    write_imatrix(&fixture.path("imatrix.gguf"), &entries, 100.0).unwrap();
    fixture.build("plain.gguf", "--report-json plain.json");
    fixture.build("w.gguf", "--imatrix imatrix.gguf --report-json w.json");
    fixture.build("p0.gguf", "--imatrix imatrix.gguf --imatrix-power 0 --report-json p0.json");
    let [plain, weighted, power_0] =
        ["plain.json", "w.json", "p0.json"].map(|n| report(&fixture, n));
    let errors = |r: &BuildReport| r.totals.errors;
    let w = errors(&weighted).gap_w.unwrap();
    assert_eq!(errors(&plain).gap_w, None);
    // Power 0 learns as without an imatrix, but is measured with it: learning for it must do better there.
    assert_eq!(errors(&power_0).gap, errors(&plain).gap);
    assert!(w < 0.95 * errors(&power_0).gap_w.unwrap(), "{w} {:?}", errors(&power_0));
    let tensor = &weighted.tensors[0];
    assert!((tensor.gap_recorded.unwrap() - tensor.errors.gap_w.unwrap()).abs() < 1e-6);
}

#[test]
fn the_progress_names_every_tensor_in_plain_lines() {
    let fixture = Fixture::small();
    let output = succeeds(&mut fixture.quick("-i model.gguf -o out.gguf"));
    let text = common::stderr(&output);
    for n in 1..=6 {
        assert!(text.contains(&format!("[{n}/6] blk.")), "{text}");
    }
    assert!(!text.contains('\u{1b}') && text.contains("ETA"), "{text}");
}

#[test]
fn version_help_and_completions() {
    let fixture = Fixture::small();
    let version = stdout(&succeeds(&mut fixture.plain("--version")));
    assert!(
        version.contains(env!("CARGO_PKG_VERSION")) && version.contains("llama.cpp"),
        "{version}"
    );
    let help = stdout(&succeeds(&mut fixture.plain("--help")));
    for flag in [
        "-i",
        "-o",
        "--scheme",
        "--vals",
        "--no-vals",
        "--row-scale",
        "--no-row-scale",
        "--dict-M",
        "--dict-M-gate",
        "--dict-M-up",
        "--dict-M-down",
        "--dict-k",
        "--dict-k-gate",
        "--dict-k-up",
        "--dict-k-down",
        "--dict-eta",
        "--dict-iters",
        "--dict-max-samples",
        "--dict-type",
        "--anti-hebb",
        "--layers",
        "--targets",
        "--threads",
        "--imatrix",
        "--imatrix-eps",
        "--imatrix-power",
        "--eval-cols",
        "--report-json",
        "--gap-tol",
        "--dense",
        "--resume",
        "--checkpoint-every",
        "--seed",
        "--dry-run",
        "--force",
        "--encoder",
    ] {
        assert!(
            help.contains(&format!("{flag} "))
                || help.contains(&format!("{flag}\n"))
                || help.contains(&format!("{flag},")),
            "{flag} is not in the help"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&succeeds(&mut fixture.plain(&format!("--completions {shell}"))));
        assert!(script.contains("checkpoint-every"), "{shell}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let fixture = Fixture::small();
    for flags in
        ["", "-i model.gguf", "-i model.gguf -o o --unknown", "-i model.gguf -o o --layers x"]
    {
        let output = fixture.plain(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
    fails(&mut fixture.quick("-i none.gguf -o o.gguf"), 1, &["error: none.gguf", "check the path"]);
}

/// Codes that are larger than a small source are announced before the work, group by group, with a way out that works.
#[test]
fn a_source_of_few_bits_is_warned_of_before_it_grows() {
    let model =
        Model { n_layers: 1, n_embd: 256, n_ff: 1024, ffn_type: Type::Q2_K, ..Model::default() };
    let fixture = Fixture::new(&model);
    let warnings = |flags: &str| {
        let output = succeeds(&mut fixture.plain(&format!("-i model.gguf {flags}")));
        let text = stderr(&output);
        let warned = text.lines().filter(|l| l.contains("warning: coding makes"));
        (warned.map(str::to_owned).collect::<Vec<String>>(), stdout(&output))
    };
    let (found, table) = warnings("--dry-run --S 6");
    assert_eq!(found.len(), 3, "{found:?}");
    let n = 256 * 1024;
    for part in [
        "statecells-build: warning: coding makes ffn_gate no smaller: 1 matrix of q2_K, 2.62 bits",
        &format!("bytes instead of {}", bytes(n / 256 * 84)),
        "a source of more bits per weight",
    ] {
        assert!(found[0].contains(part), "{part} is not in: {}", found[0]);
    }
    assert!(table.contains("Saved: -"), "{table}");
    // What it names is small enough, and the next larger is not.
    let (_, rest) = found[0].split_once("use --S ").expect("a number of sections");
    let most: usize = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(warnings(&format!("--dry-run --S {most} --targets gate")).0.is_empty());
    assert_eq!(warnings(&format!("--dry-run --S {} --targets gate", most + 1)).0.len(), 1);
    // The build itself says so first.
    let (found, _) = warnings("-o out.gguf --S 6 --rounds 0 --beam 1 --targets down");
    assert_eq!(found.len(), 1);
    let (found, _) = warnings("--dry-run --scheme sign --dict-M 4000");
    assert!(found[0].contains("smaller --dict-M or --dict-k"), "{found:?}");
    let (found, _) = warnings("--dry-run --bpw 5 -t 2 --targets up");
    assert!(found[0].contains("--bpw below 2.62"), "{found:?}");
}
