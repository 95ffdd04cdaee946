//! The program on tiny matrices.

use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

/// Flags of a run that takes no time.
const TINY: [&str; 6] = ["--rows", "64", "--cols", "256", "--rounds", "3"];

fn bench(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("statecells-bench").unwrap();
    command.args(args);
    command
}

/// What a tiny run with `args` and one copy of each matrix writes to its JSON file.
fn run(args: &[&str]) -> Value {
    run_copies("0", args)
}

/// The same with copies that fill `cold_mib`.
fn run_copies(cold_mib: &str, args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let mut all = TINY.to_vec();
    all.extend(["--json", path.to_str().unwrap(), "--cold-mib", cold_mib]);
    all.extend(args);
    bench(&all).assert().success().stdout(contains("Gweights/s"));
    assert_eq!(names(folder.path()), ["bench.json"], "nothing else may be left");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn keys(map: &Value) -> Vec<&str> {
    map.as_object().unwrap().keys().map(String::as_str).collect()
}

fn number(value: &Value) -> f64 {
    let number = value.as_f64().unwrap();
    assert!(number > 0.0 && number.is_finite(), "{value}");
    number
}

fn close(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-9
}

/// Checks every figure of a report against the median times in it.
fn check_figures(report: &Value, n_weights: f64, n_tokens: f64) {
    let entries = report["contenders"].as_array().unwrap();
    let ours: Vec<_> = entries.iter().filter(|e| e["coded"] == true).collect();
    assert_eq!(ours.len(), 1);
    let our_ms = number(&ours[0]["milliseconds"]["median"]);
    for entry in entries {
        let name = entry["name"].as_str().unwrap();
        let times = &entry["milliseconds"];
        let ms = number(&times["median"]);
        let order = ["min", "q1", "median", "q3", "max"].map(|key| number(&times[key]));
        assert!(order.is_sorted(), "{order:?}");
        assert!(close(number(&entry["ratio"]), ms / our_ms), "{name}");
        let gweights = n_weights * n_tokens / ms / 1e6;
        assert!(close(number(&entry["gweights_per_s"]), gweights), "{name}");
        let gb = number(&entry["bytes"]) / ms / 1e6;
        assert!(close(number(&entry["gb_per_s"]), gb), "{name}");
        assert!(close(
            number(&entry["bits_per_weight"]),
            number(&entry["bytes"]) * 8.0 / n_weights
        ));
        // The short maps hold the type's faster layout.
        let same = entries.iter().filter(|e| e["name"] == entry["name"]);
        let fastest = same.map(|e| number(&e["milliseconds"]["median"])).fold(f64::MAX, f64::min);
        assert_eq!(entry["fastest"] == true, ms == fastest, "{name}");
        if entry["coded"] == false {
            assert!(close(number(&report["ratio"][name]), fastest / our_ms), "{name}");
        }
        let per_s = number(&report["gweights_per_s"][name]);
        assert!(close(per_s, n_weights * n_tokens / fastest / 1e6), "{name}");
    }
}

#[test]
fn ratios_are_ggml_times_over_ours() {
    for (scheme, n_tokens, n_threads) in [
        ("sections", "1", "1"),
        ("sections", "7", "2"),
        ("sign+row_scale", "5", "2"),
        ("sign+vals", "1", "1"),
    ] {
        let types = "q5_K,f16,Q4_0,q4_0";
        let report = run(&[
            ["--scheme", scheme, "--batch", n_tokens],
            ["--threads", n_threads, "--against", types],
        ]
        .concat());
        assert_eq!(keys(&report["ratio"]), ["f16", "q4_0", "q5_K"]);
        let mut all = vec!["f16", "q4_0", "q5_K", scheme];
        all.sort_unstable();
        assert_eq!(keys(&report["gweights_per_s"]), all);
        assert_eq!(keys(&report["gb_per_s"]), all);
        check_figures(&report, 64.0 * 256.0, n_tokens.parse().unwrap());
        let arguments = &report["arguments"];
        assert_eq!((&arguments["rows"], &arguments["cols"]), (&64.into(), &256.into()));
        assert_eq!(arguments["scheme"], scheme);
        assert_eq!(arguments["threads"].to_string(), n_threads);
        assert!(report["llama_cpp"].as_str().unwrap().starts_with("llama.cpp "));
    }
}

#[test]
fn batches_of_a_list_are_measured_one_after_the_other() {
    let reports = run(&["--batch", "1,9", "--against", "q4_0"]);
    for (report, n_tokens) in reports.as_array().unwrap().iter().zip([1, 9]) {
        assert_eq!(report["arguments"]["batch"], n_tokens);
        check_figures(report, 64.0 * 256.0, f64::from(n_tokens));
        assert!(["lookup", "decode"].contains(&report["route"].as_str().unwrap()));
        // Memory limits one token only.
        assert_eq!(report["read"].is_object(), n_tokens == 1);
    }
    let read = &reports[0]["read"];
    let ours = &reports[0]["contenders"][0];
    let gb = number(&ours["bytes"]) / number(&read["milliseconds"]["median"]) / 1e6;
    assert!(close(number(&read["gb_per_s"]), gb));
    assert!(close(number(&read["share"]), number(&ours["gb_per_s"]) / gb));
}

/// A product reads the experts in use, and multiplies with those of each token.
#[test]
fn experts_are_measured_as_a_token_uses_them() {
    let experts = ["--experts", "8", "--used", "2", "--against", "q4_0,f16"];
    for (batch, used) in [("1", 2.0), ("3", 6.0)] {
        let report = run(&[&experts[..], &["--batch", batch]].concat());
        let ours = &report["contenders"][0];
        assert_eq!(
            (&report["arguments"]["experts"], &report["arguments"]["used"]),
            (&8.into(), &2.into())
        );
        let seconds = number(&ours["milliseconds"]["median"]) / 1e3;
        let read = number(&ours["bytes"]) * (used / 8.0) / seconds / 1e9;
        assert!(close(number(&ours["gb_per_s"]), read), "{ours}");
        let multiplied = 64.0 * 256.0 * used / seconds / 1e9;
        assert!(close(number(&ours["gweights_per_s"]), multiplied), "{ours}");
        assert_eq!(keys(&report["ratio"]), ["f16", "q4_0"]);
    }
    for (flags, says) in [
        (&["--experts", "4", "--used", "5"][..], "--used 5"),
        (&["--experts", "4"], "--used"),
        (&["--experts", "4", "--used", "1", "--scheme", "sign"], "--experts"),
    ] {
        let flags = [&TINY[..], flags].concat();
        bench(&flags).assert().code(2).stderr(contains(says));
    }
}

#[test]
fn the_form_that_ran_is_named_and_can_be_chosen() {
    let flags = [&TINY[..], &["--cold-mib", "0", "--against", "q4_0"]].concat();
    let lookup = bench(&flags).env("STATECELLS_BATCH", "lookup").assert().success();
    lookup.stdout(contains("by lookup").and(contains("plain read")));
    let scalar = [("STATECELLS_ISA", "scalar"), ("STATECELLS_BATCH", "decode")];
    let decode = bench(&flags).envs(scalar).assert().success();
    decode.stdout(contains("with scalar, by decode"));
    let global = [&flags[..], &["--scheme", "sign"]].concat();
    bench(&global).assert().success().stdout(contains(", by ").not());
    let wrong = bench(&flags).env("STATECELLS_BATCH", "dense").assert().code(1);
    wrong.stderr(contains("STATECELLS_BATCH: 'dense' is not available"));
}

#[test]
fn sizes_are_those_of_the_files() {
    let flags = ["--scheme", "sign+row_scale", "--dict-M", "64", "--dict-k", "4"];
    let report = run(&[&flags[..], &["--against", "q5_K"]].concat());
    let entry = |name: &str| {
        let entries = report["contenders"].as_array().unwrap();
        entries.iter().find(|e| e["name"] == name).unwrap().clone()
    };
    let coded = 2 * (256 * 64 + 4 * 64 + 64); // dict and row_scale F16, codes I16
    assert_eq!(entry("sign+row_scale")["bytes"], coded);
    assert_eq!(entry("q5_K")["bytes"], 64 * 176);

    let sections = |flags: &[&str]| {
        let report = run(&[flags, &["--against", "q4_0"]].concat());
        let entry = report["contenders"][0].clone();
        assert_eq!(
            (&entry["name"], &report["arguments"]["scheme"]),
            (&"sections".into(), &"sections".into())
        );
        number(&entry["bytes"]) as usize
    };
    let bytes = |s: usize| 8 * 16 * s * 2 + 64 * 256 / 8 * s / 2 + 64 * 2;
    assert_eq!(sections(&[]), bytes(6));
    assert_eq!(sections(&["--bpw", "3.5"]), bytes(7));
    let n_outliers = 64 * 256 / 64;
    assert_eq!(sections(&["--bpw", "4", "--outliers", "0.015625"]), bytes(8) + 6 * n_outliers);
}

#[test]
fn copies_fill_the_memory_asked_for() {
    let report = run_copies("1", &["--against", "q4_0"]);
    for entry in report["contenders"].as_array().unwrap() {
        let (copies, bytes) = (number(&entry["copies"]), number(&entry["bytes"]));
        assert!(
            copies * bytes >= f64::from(1 << 20) && (copies - 1.0) * bytes < f64::from(1 << 20)
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn repacked_layouts_are_measured_beside_plain_ones() {
    let report = run(&["--against", "q4_0,q5_0"]);
    let entries = report["contenders"].as_array().unwrap();
    let layouts = |name: &str| {
        let of_type = entries.iter().filter(move |e| e["name"] == name);
        of_type.map(|e| e["memory"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(layouts("q5_0"), ["CPU"]);
    if std::is_x86_feature_detected!("avx2") {
        // llama.cpp asks its layout for AMX before the others, where the CPU has that.
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let other = if cpu.contains(" amx_int8") { "AMX" } else { "CPU_REPACK" };
        let found = layouts("q4_0");
        assert_eq!(found, ["CPU", other]);
        assert!(found.contains(&report["memory"]["q4_0"].as_str().unwrap()));
    }
}

#[test]
fn wrong_usage_names_the_flag() {
    let shape = ["--rows", "64", "--cols", "256"];
    let cases: [(&[&str], &str); 17] = [
        (&["--against", "q9_z"], "q5_K"),
        (&["--against", "i32"], "--against"),
        (&["--scheme", "signs"], "sign+row_scale"),
        (&["--batch", "0"], "--batch"),
        (&["--batch", "1,,8"], "--batch"),
        (&["--threads", "0"], "--threads"),
        (&["--rounds", "0"], "--rounds"),
        (&["--scheme", "sign", "--dict-k", "65"], "--dict-k"),
        (&["--scheme", "sign", "--dict-M", "40000"], "--dict-M"),
        (&["--scheme", "sign", "--bpw", "3"], "--bpw"),
        (&["--scheme", "sign", "--outliers", "0.1"], "--outliers"),
        (&["--dict-k", "4"], "--dict-k"),
        (&["--bpw", "3.2"], "0.5"),
        (&["--bpw", "8.5"], "--bpw"),
        (&["--outliers", "0.2"], "--outliers"),
        (&["--cold-mib", "x"], "--cold-mib"),
        (&["--completions", "sh"], "bash"),
    ];
    for (args, named) in cases {
        let all: Vec<_> = shape.iter().chain(args).copied().collect();
        bench(&all).assert().code(2).stderr(contains(named)).stdout("");
    }
    bench(&["--rows", "64"]).assert().code(2).stderr(contains("--cols"));
    bench(&["--rows", "0", "--cols", "256"]).assert().code(2).stderr(contains("--rows"));
    let odd = ["--rows", "64", "--cols", "100", "--against", "q5_K"];
    bench(&odd).assert().code(2).stderr(contains("256").and(contains("q5_K")));
}

#[test]
fn errors_are_one_line() {
    let one_line = |args: &[&str], named: &str| {
        let output = bench(args).assert().code(1).stdout("").get_output().stderr.clone();
        let text = String::from_utf8(output).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("statecells-bench: error: ") && text.contains(named), "{text}");
    };
    let mut nowhere = TINY.to_vec();
    nowhere.extend(["--json", "/nonexistent/bench.json"]);
    one_line(&nowhere, "--json: /nonexistent: ");
    let huge = ["--rows", "64", "--cols", "256", "--batch", "4000000000"];
    one_line(&huge, "--batch");
}

#[test]
fn version_help_and_completions_need_no_matrix() {
    bench(&["--version"]).assert().success().stdout(contains("llama.cpp"));
    bench(&["--help"]).assert().success().stdout(contains("MiB").and(contains("TOKENS")));
    bench(&["--completions", "bash"]).assert().success().stdout(contains("statecells-bench"));
}
