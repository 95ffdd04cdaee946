//! `--bpw` and `--target-saving`: the budget is kept, spent where it helps, and shared out alike by every run.

mod common;

use std::fs;

use builder::report::BuildReport;
use common::{Fixture, fails, stdout, succeeds};
use fixtures::models::Model;

/// Quick, and with wide enough rows that the scales weigh little.
const SECTIONS: &str = "-i model.gguf --scheme sections --no-calib --rounds 1 --beam 4 -t 1";

fn fixture() -> Fixture {
    Fixture::new(&Model { n_embd: 128, n_ff: 384, ..Model::default() })
}

fn build(fixture: &Fixture, output: &str, flags: &str) -> BuildReport {
    let flags = format!("{SECTIONS} -o {output} --force --report-json r.json {flags}");
    succeeds(&mut fixture.plain(&flags));
    serde_json::from_slice(&fixture.bytes("r.json")).unwrap()
}

fn sections(report: &BuildReport) -> Vec<u64> {
    report.tensors.iter().map(|t| t.settings["S"]).collect()
}

#[test]
fn budgets_are_kept_and_used_up() {
    let fixture = fixture();
    for (flags, limit_bits) in [("--bpw 3.1", Some(3.1)), ("--target-saving 0.4", None)] {
        let report = build(&fixture, "out.gguf", flags);
        let totals = &report.totals;
        let limit = match limit_bits {
            Some(bits) => bits * totals.n_weights as f64 / 8.0,
            None => 0.6 * totals.bytes_q5_k_m as f64,
        };
        let left = limit - totals.bytes as f64;
        // Less is left than half a bit for each weight of the smallest tensor, the price of a section.
        let step = totals.n_weights as f64 / report.tensors.len() as f64 / 16.0;
        assert!((0.0..1.1 * step).contains(&left), "{flags}: {left} of {limit} left, step {step}");
        assert!(sections(&report).iter().all(|s| (4..=10).contains(s)));
    }
}

#[test]
fn tensors_that_matter_more_get_more() {
    let fixture = fixture();
    let even = build(&fixture, "even.gguf", "--bpw 3.2");
    fs::write(fixture.path("s.json"), r#"{"blk.1.ffn_up": 50, "blk.0.ffn_down": 0}"#).unwrap();
    let shifted = build(&fixture, "shifted.gguf", "--bpw 3.2 --sensitivity s.json");
    let of = |report: &BuildReport, name: &str| {
        report.tensors.iter().find(|t| t.name == name).unwrap().settings["S"]
    };
    assert!(of(&shifted, "blk.1.ffn_up.weight") > of(&even, "blk.1.ffn_up.weight"));
    assert_eq!(of(&shifted, "blk.0.ffn_down.weight"), 4);
    assert!(shifted.totals.bytes <= even.totals.n_weights * 32 / 80);
}

#[test]
fn an_easy_tensor_gets_less() {
    let fixture = fixture();
    let model = Model { n_embd: 128, n_ff: 384, ..Model::default() };
    // Blocks of eight signs: two sections of 16 atoms would say it all.
    let signs = |name: &str, values: &mut [f32]| {
        if name == "blk.0.ffn_gate.weight" {
            values.iter_mut().for_each(|v| *v = v.signum());
        }
    };
    model.write_with(&fixture.path("model.gguf"), |_| Ok(()), signs).unwrap();
    let sections = sections(&build(&fixture, "out.gguf", "--bpw 3.2"));
    assert_eq!(sections[0], 4);
    assert!(sections[1..].iter().all(|s| *s > 4), "{sections:?}");
}

#[test]
fn dry_run_build_and_threads_agree() {
    let fixture = fixture();
    let dry = stdout(&succeeds(&mut fixture.plain(&format!("{SECTIONS} --bpw 3.3 --dry-run"))));
    let report = build(&fixture, "one.gguf", "--bpw 3.3");
    for tensor in &report.tensors {
        let stem = tensor.name.trim_end_matches(".weight");
        let line = dry.lines().find(|l| l.contains(stem)).unwrap();
        let sections = format!("S {}", tensor.settings["S"]);
        assert!([" ", ","].iter().any(|end| line.contains(&(sections.clone() + end))), "{line}");
        assert!(line.contains(&program::table::bytes(tensor.bytes)), "{line}");
    }
    let flags = format!("{SECTIONS} -o two.gguf --bpw 3.3").replace("-t 1", "-t 2");
    succeeds(&mut fixture.plain(&flags));
    assert!(fixture.bytes("one.gguf") == fixture.bytes("two.gguf"));
}

#[test]
fn resume_keeps_the_allocation() {
    let fixture = fixture();
    let whole = build(&fixture, "one.gguf", "--bpw 3.3");
    // A build that stops after some tensors, with its allocation in the work folder.
    let flags = format!("{SECTIONS} -o out.gguf --bpw 3.3");
    let mut child = fixture.plain(&flags).stderr(std::process::Stdio::null()).spawn().unwrap();
    let work = fixture.path("out.gguf.statecells-work");
    let first = work.join("blk.0.ffn_gate.tensor");
    while !first.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resume = format!("{flags} --resume --report-json r.json");
    let output = succeeds(&mut fixture.plain(&resume));
    assert!(!common::stderr(&output).contains("sharing out"));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("one.gguf"));
    let resumed: BuildReport = serde_json::from_slice(&fixture.bytes("r.json")).unwrap();
    assert_eq!(sections(&resumed), sections(&whole));

    // Another budget, other tensors.
    let other = resume.replace("3.3", "3.6");
    fails(&mut fixture.plain(&other), 1, &["--resume: --bpw is 3.6", "made with 3.3"]);
    build(&fixture, "out.gguf", "--bpw 3.3 --layers 0");
    let parts =
        ["--resume: ", "out.gguf: its budget was shared out over 3 tensors, not over these 6"];
    fails(&mut fixture.plain(&resume), 1, &parts);
}

#[test]
fn tolerated_gaps_ask_for_more_sections() {
    let fixture = fixture();
    let free = build(&fixture, "out.gguf", "--bpw 6");
    assert_eq!(sections(&free), [10; 6]);
    let gap = free.tensors.iter().filter_map(|t| t.gap_recorded).fold(0.0, f64::max);
    // All are coded well within this, few with 4 sections.
    let some = build(&fixture, "out.gguf", &format!("--bpw 3.4 --gap-tol {}", 3.0 * gap));
    assert!(sections(&some).iter().all(|s| *s > 4), "{:?}", sections(&some));
    let none = build(&fixture, "out.gguf", &format!("--bpw 6 --gap-tol {}", 0.1 * gap));
    assert_eq!(none.totals.n_dense, 6);
}

#[test]
fn impossible_budgets_and_files_are_refused() {
    let fixture = fixture();
    let with = |flags: &str| format!("{SECTIONS} -o out.gguf {flags}");
    let code_1 = |flags: &str, parts: &[&str]| fails(&mut fixture.plain(&with(flags)), 1, parts);
    code_1("--bpw 1.5", &["--bpw: 1.5 is out of reach", "use at least 2."]);
    code_1("--target-saving 0.9", &["--target-saving: 0.9 is out of reach", "use at most 0."]);
    for (text, part) in [
        ("[1]", "is no JSON object"),
        (r#"{"blk.0.ffn_down": -1}"#, "blk.0.ffn_down is -1: use numbers of at least 0"),
        (r#"{"ffn_down": 1}"#, "'ffn_down' is no FFN matrix"),
    ] {
        fs::write(fixture.path("s.json"), text).unwrap();
        code_1("--bpw 3 --sensitivity s.json", &["--sensitivity", "s.json", part]);
    }
    code_1("--bpw 3 --sensitivity none.json", &["none.json", "check the path"]);
    fs::copy(fixture.path("s.json"), fixture.path("out.gguf")).unwrap();
    code_1("--bpw 3 --force --sensitivity out.gguf", &["--sensitivity and -o are the same file"]);
    fs::remove_file(fixture.path("out.gguf")).unwrap();
    assert_eq!(fixture.names(), ["model.gguf", "s.json"]);
    for flags in [
        "--scheme sections --bpw 3 --S 4",
        "--scheme sections --bpw 3 --target-saving 0.3",
        "--scheme sections --sensitivity s.json",
        "--scheme sections --bpw 0",
        "--scheme sections --target-saving 1",
        "--scheme sign --bpw 3",
        "--vals --target-saving 0.3",
    ] {
        let command = format!("-i model.gguf -o out.gguf {flags}");
        let output = fixture.plain(&command).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
}
