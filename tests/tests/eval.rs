//! statecells-eval from end to end on a small random model, and its page in a real browser.

use std::path::{Path, PathBuf};

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, browser, check_page};
use fixtures::models::Model;
use format::Role;
use ggml::gguf::{GgufWriter, WriteError};
use serde_json::Value;
use tempfile::TempDir;

struct Fixture {
    folder: TempDir,
    model: Model,
}

impl Fixture {
    fn new() -> Self {
        Self::with(&[Coding::sections(0.01)], |_| Ok(()), |_, _| {})
    }

    /// A base with changes, coded in several ways one after the other.
    fn with(
        codings: &[Coding],
        metadata: impl FnOnce(&mut GgufWriter) -> Result<(), WriteError>,
        weights: impl FnMut(&str, &mut [f32]),
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let model = Model::default();
        let base = folder.path().join("base.gguf");
        model.write_with(&base, metadata, weights).unwrap();
        let code = |file: ModelFile, coding| Twins::of(&file, coding).coded;
        codings.iter().fold(ModelFile::read(&base), code).write(&folder.path().join("coded.gguf"));
        let words = (0..300).map(|i| ["one", "two", "or so", "many"][i * i % 7 % 4]);
        std::fs::write(folder.path().join("text.txt"), words.collect::<Vec<_>>().join(" "))
            .unwrap();
        Self { folder, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, more: &str) -> Run {
        let mut arguments: Vec<String> = ["base", "sc", "text", "outdir"]
            .iter()
            .zip(["base.gguf", "coded.gguf", "text.txt", "out"])
            .flat_map(|(flag, name)| [format!("--{flag}"), self.path(name).display().to_string()])
            .collect();
        let quick = "--ctx 64 --chunks 12 --rounds 2 --prompt-tokens 16 --generation-tokens 4 -t 1 --against Q5_K_M,Q3_K_M";
        arguments.extend(quick.split(' ').chain(more.split_whitespace()).map(str::to_owned));
        Run::of("statecells-eval", arguments)
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("out/report.json")).unwrap()).unwrap()
    }
}

fn file<'r>(report: &'r Value, key: &str) -> &'r Value {
    let files = report["files"].as_array().unwrap();
    files.iter().find(|f| f["key"] == key).unwrap_or_else(|| panic!("no {key} in {files:?}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Figures of the report, without times.
fn figures(report: &Value) -> Value {
    let of = |f: &Value| {
        serde_json::json!([
            f["key"],
            f["sizes"]["value"],
            f["perplexity"]["value"],
            f["divergence"]["value"],
            f["speed"]["value"],
            f["sha256"]
        ])
    };
    let files: Vec<Value> = report["files"].as_array().unwrap().iter().map(of).collect();
    serde_json::json!([files, report["qa"]["value"], report["statecells"], report["verdict"]])
}

fn check_sizes(fixture: &Fixture, report: &Value) {
    let model = &fixture.model;
    let weights = (3 * model.n_layers * model.n_embd * model.n_ff) as f64;
    let ffn = |key: &str| number(&file(report, key)["sizes"]["value"]["ffn_bytes"]);
    // Rows of 64 and 192 are no multiple of 256: Q5_K falls back on Q5_1 with 6 bits a weight, Q6_K on Q8_0 with 8.5.
    let down = weights / 3.0;
    let q5_k_m = ffn("ffn-Q5_K_M");
    assert!(
        q5_k_m >= 0.75 * weights && q5_k_m <= (2.0 * down) * 0.75 + down * 8.5 / 8.0,
        "{q5_k_m}"
    );
    assert_eq!(ffn("base"), 4.0 * weights);
    assert!(ffn("whole-Q5_K_M") >= q5_k_m && ffn("ffn-Q3_K_M") < q5_k_m);
    let notes = file(report, "ffn-Q5_K_M")["notes"].to_string();
    assert!(notes.contains("ffn_gate: q5_K fell back to q5_1 (rows of 64)"), "{notes}");
    let saved = number(&report["statecells"]["mem_saved_gb"]);
    assert!((saved - (ffn("base") - ffn("statecells")) / 1e9).abs() < 1e-12);
    // The other tensors of an FFN-only file are the base's.
    let other = |key: &str| number(&file(report, key)["sizes"]["value"]["tensor_bytes"]) - ffn(key);
    assert_eq!(other("ffn-Q5_K_M"), other("base"));
    assert_ne!(other("whole-Q5_K_M"), other("base"));
}

fn check_quality(report: &Value) {
    let sc = file(report, "statecells");
    let divergence = &sc["divergence"]["value"];
    assert!(number(&divergence["kl_mean"]["value"]) > 0.0);
    assert_eq!(divergence["chunk_ln_ratio"].as_array().unwrap().len(), 12);
    let (alone, compared) =
        (&sc["perplexity"]["value"]["estimate"]["value"], &divergence["perplexity"]["value"]);
    assert!((number(alone) / number(compared) - 1.0).abs() < 1e-3, "{alone} and {compared}");
    let base = number(&divergence["perplexity_base"]["value"]);
    let gap = number(&report["statecells"]["gap_ppl"]);
    assert!((gap - (number(compared) / base - 1.0)).abs() < 1e-3, "{gap}");
    assert!(number(&report["statecells"]["speedup"]) > 0.0);
    assert!(number(&sc["speed"]["value"]["peak_memory_bytes"]) > 1e6);
}

/// All measurements once, then again from the kept ones.
#[test]
fn a_whole_evaluation_and_its_resumption() {
    let fixture = Fixture::new();
    let run = fixture.run("");
    assert!(matches!(run.code, Some(0 | 3)), "{:?}:\n{}\n{}", run.code, run.text(), run.stderr);
    let report = fixture.report();
    assert_eq!(report["verdict"]["passed"].as_bool().unwrap(), run.code == Some(0));
    check_sizes(&fixture, &report);
    check_quality(&report);
    let qa = &report["qa"]["value"];
    assert!(
        number(&qa["n_asked"]) >= 24.0 && number(&qa["n_skipped"]) > 0.0,
        "no chat template: {qa}"
    );
    for name in ["base", "statecells"] {
        let log =
            std::fs::read_to_string(fixture.path(&format!("out/perplexity_{name}.log"))).unwrap();
        assert!(log.contains("Final estimate: PPL = "));
    }
    let left: Vec<PathBuf> = walk(&fixture.path("out"));
    assert!(
        left.iter()
            .all(|p| p.extension().is_some_and(|e| e == "json" || e == "log" || e == "html")),
        "{left:?}"
    );

    let again = fixture.run("--resume");
    assert_eq!(again.code, run.code, "{}", again.stderr);
    let resumed = fixture.report();
    assert_eq!(figures(&resumed), figures(&report));
    for part in ["perplexity", "divergence", "speed", "sizes"] {
        assert_eq!(
            file(&resumed, "statecells")[part]["reused"].as_bool(),
            Some(part != "sizes"),
            "{part}"
        );
    }
    // Another text is another measurement.
    std::fs::write(fixture.path("text.txt"), "other words here ".repeat(200)).unwrap();
    let other = fixture.run("--resume --skip speed,qa,whole");
    assert_eq!(
        file(&fixture.report(), "statecells")["divergence"]["reused"],
        false,
        "{}",
        other.stderr
    );
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
}

/// A calibration text that is the evaluation text is found out, another is not.
#[test]
fn an_evaluation_on_the_calibration_text_is_warned_of() {
    let fixture = Fixture::new();
    let warned = |text: &str| {
        let run = fixture
            .run(&format!("--skip speed,qa,whole --calib-text {}", fixture.path(text).display()));
        assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
        fixture.report()["overlap"]["suspicious"].as_bool().unwrap()
    };
    assert!(warned("text.txt"));
    std::fs::write(
        fixture.path("other.txt"),
        "quite another text, with other letters in it".repeat(30),
    )
    .unwrap();
    assert!(!warned("other.txt"));
}

/// Quality that cannot be measured is not called good, and what can be measured is.
fn check_without_quality(fixture: &Fixture, run: &Run, reason: &str) {
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let report = fixture.report();
    assert!(report["no_logits"].as_str().unwrap().contains(reason), "{}", report["no_logits"]);
    assert_ne!(report["verdict"]["passed"], true);
    assert!(report["qa"].is_null());
    for rule in report["verdict"]["rules"].as_array().unwrap() {
        let is_quality = rule["id"] == "perplexity_2";
        assert_eq!(rule["passed"].is_null(), is_quality, "{rule}");
        assert_eq!(rule["reason"].is_null(), !is_quality, "{rule}");
        assert!(!is_quality || rule["value"].is_null() && rule["against_whole_file"].is_null());
    }
    for file in report["files"].as_array().unwrap() {
        assert!(file["perplexity"].is_null() && file["divergence"].is_null(), "{file}");
        assert!(number(&file["sizes"]["value"]["ffn_bytes"]) > 0.0);
        assert!(!file["speed"]["value"]["prompt"].as_array().unwrap().is_empty());
    }
    for name in ["gap_ppl", "gap_ppl_q5_k_m"] {
        assert!(report["statecells"][name].is_null(), "{name}");
    }
    let html = std::fs::read_to_string(fixture.path("out/report.html")).unwrap();
    assert!(html.contains("Quality was not measured") && html.contains("NOT MEASURED"));
    let text = run.text();
    for part in ["NOT MEASURED", "no logits for the next token"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let compared =
        ["--compare", fixture.path("out/report.json").to_str().unwrap()].map(str::to_owned);
    let compared = Run::of("statecells-eval", compared);
    assert_eq!(compared.code, Some(1));
    let _ = compared.line(&["report.json", "no perplexities to compare"]);
}

#[test]
fn quality_of_an_embedding_model_is_not_measured() {
    let set = |w: &mut GgufWriter| {
        w.set("llama.attention.causal", false)?;
        w.set("llama.pooling_type", 1u32)
    };
    let fixture = Fixture::with(&[Coding::sections(0.01)], set, |_, _| {});
    let run = fixture.run("--skip whole");
    check_without_quality(&fixture, &run, "llama.attention.causal = false");
    let logs = std::fs::read_dir(fixture.path("out")).unwrap().map(|e| e.unwrap().file_name());
    let logs: Vec<String> = logs.map(|n| n.into_string().unwrap()).collect();
    let unused =
        |name: &&String| ["perplexity_", "divergence_", "qa_"].iter().any(|p| name.starts_with(p));
    assert_eq!(logs.iter().find(unused), None, "no time was spent on it");
    let again = fixture.run("--skip whole --resume");
    check_without_quality(&fixture, &again, "llama.attention.causal = false");
}

/// Not every such model says so: the perplexity gives it away.
#[test]
fn equal_logits_are_no_quality() {
    let silent = |name: &str, weights: &mut [f32]| {
        if name == "output.weight" {
            weights.fill(0.0);
        }
    };
    let fixture = Fixture::with(&[Coding::sections(0.01)], |_| Ok(()), silent);
    let run = fixture.run("--skip whole");
    check_without_quality(&fixture, &run, "size of the vocabulary, 288");
}

/// A file runs with the flags that its schemes need, also with both.
/// Only what is coded is requantized, with the importance matrix where there is one.
#[test]
fn variants_of_a_few_layers_with_an_importance_matrix() {
    let first = Coding { layers: vec![0], ..Coding::sections(0.01) };
    let fixture = Fixture::with(&[first], |_| Ok(()), |_, _| {});
    let (imatrix, text) = (fixture.path("imatrix.gguf"), fixture.path("text.txt"));
    let path = |p: &Path| p.display().to_string();
    let arguments = ["-m", &path(&fixture.path("base.gguf")), "-f", &path(&text), "-c", "64"]
        .map(str::to_owned)
        .into_iter()
        .chain(["-o".to_owned(), path(&imatrix), "-t".to_owned(), "1".to_owned()]);
    let _ = Run::of("llama-imatrix", arguments).ok();
    let more =
        format!("--skip speed,qa --keep-variants --imatrix {} --against Q4_0", path(&imatrix));
    let run = fixture.run(&more);
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
    let report = fixture.report();
    let q4_0 = file(&report, "ffn-Q4_0");
    assert_eq!(q4_0["label"], "Q4_0 FFN, imatrix");
    let made = ModelFile::read(Path::new(q4_0["path"].as_str().unwrap()));
    let base = ModelFile::read(&fixture.path("base.gguf"));
    for a in &base.tensors {
        let b = made.tensors.iter().find(|b| b.name == a.name).unwrap();
        let is_coded =
            a.name.starts_with("blk.0.ffn_") && a.dims.len() == 2 && a.name.ends_with("weight");
        assert_eq!(a.ty == b.ty, !is_coded, "{}", a.name);
    }
    let commands = file(&report, "ffn-Q4_0")["sizes"]["command"].to_string();
    assert!(commands.contains("--imatrix"), "{commands}");
    // The mean squares of a calibration of the same text do for the FFN what llama-imatrix does.
    let calib = fixture.path("calib.gguf");
    let paths = [fixture.path("base.gguf"), text, calib.clone()].map(|p| path(&p));
    let arguments = ["-m", &paths[0], "-f", &paths[1], "-o", &paths[2], "--ctx", "64", "-t", "1"];
    let _ = Run::of("statecells-calib", arguments).ok();
    let run = fixture.run(&format!("--skip speed,qa --calib {} --against IQ4_XS", path(&calib)));
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
    let report = fixture.report();
    assert_eq!(file(&report, "ffn-IQ4_XS")["label"], "IQ4_XS FFN, imatrix");
    assert_eq!(file(&report, "whole-IQ4_XS")["label"], "IQ4_XS file");
    assert_eq!(file(&report, "ffn-IQ4_XS")["sizes"]["failure"], Value::Null);
}

#[test]
fn files_by_seeddelta_are_evaluated() {
    let seeddelta = Coding::seeddelta("lowrank:20", false);
    let half = |coding: Coding, targets: &[Role]| Coding { targets: targets.to_vec(), ..coding };
    let both = [
        half(Coding::sections(0.01), &[Role::Gate]),
        half(seeddelta.clone(), &[Role::Up, Role::Down]),
    ];
    for (codings, flags) in
        [(&[seeddelta][..], &["--seeddelta"][..]), (&both, &["--statecells", "--seeddelta"])]
    {
        let fixture = Fixture::with(codings, |_| Ok(()), |_, _| {});
        let run = fixture.run("--skip whole");
        assert!(matches!(run.code, Some(0 | 3)), "{:?}:\n{}", run.code, run.stderr);
        let report = fixture.report();
        check_quality(&report);
        let command = file(&report, "statecells")["perplexity"]["command"].to_string();
        for flag in ["--statecells", "--seeddelta"] {
            assert_eq!(
                command.contains(&format!("\"{flag}\"")),
                flags.contains(&flag),
                "{command}"
            );
        }
        let tensors = report["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), 6);
        assert!(tensors.iter().all(|t| t["scheme"].is_string()), "{tensors:?}");
        let sizes = &file(&report, "statecells")["sizes"]["value"];
        assert!(
            number(&sizes["ffn_bytes"])
                < number(&file(&report, "base")["sizes"]["value"]["ffn_bytes"])
        );
        assert_eq!(number(&sizes["ffn_weights"]), (6 * 64 * 192) as f64);
    }
}

/// The page of a real evaluation of SmolLM2 and a page with every element, narrow and wide, light and dark.
#[test]
fn pages_have_no_faults_in_a_browser() {
    let Some(browser) = browser() else { return };
    let fixture = Fixture::new();
    let run = fixture.run("");
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
    check_page(&browser, &fixture.path("out/report.html"));
    let sample = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/evaluation-report.json");
    let copy = fixture.path("report.json");
    std::fs::copy(sample, &copy).unwrap();
    let _ = Run::of("statecells-eval", [Path::new("--page"), &copy]).ok();
    check_page(&browser, &fixture.path("report.html"));
}
