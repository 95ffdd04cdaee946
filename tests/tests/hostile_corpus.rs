//! The corpus of bad files through the patched llama.cpp: a clean refusal each time, by name where a coded
//! tensor is to blame.

use std::path::Path;

use end_to_end::programs::Run;
use fixtures::hostile::families::Family;
use fixtures::hostile::gguf::Gguf;
use fixtures::hostile::{self, Case, good};
use tempfile::TempDir;

const FLAGS: &str =
    "--statecells --seeddelta -no-cnv -p abc -n 2 --temp 0 -c 64 -t 1 --no-warmup -m";

/// The same without leave to run anything from codes.
const DENSE_FLAGS: &str = "-no-cnv -p abc -n 2 --temp 0 -c 64 -t 1 --no-warmup -m";

fn run(bytes: &[u8]) -> Run {
    run_with(FLAGS, bytes)
}

fn run_with(flags: &str, bytes: &[u8]) -> Run {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bad.gguf");
    std::fs::write(&path, bytes).unwrap();
    run_on(flags, &path)
}

fn run_on(flags: &str, path: &Path) -> Run {
    Run::of("llama-completion", flags.split(' ').chain([path.to_str().unwrap()]))
}

/// All cases must end by exit code 1 with an error line that holds what `parts` gives for them.
fn refused(cases: &[Case], parts: impl Fn(&Case) -> Vec<&'static str>) {
    refused_with(FLAGS, cases, parts);
}

fn refused_with(flags: &str, cases: &[Case], parts: impl Fn(&Case) -> Vec<&'static str>) {
    let mut faults = Vec::new();
    for case in cases.iter().filter(|c| c.llama_refuses) {
        faults.extend(fault(case, &run_with(flags, &case.bytes), &parts(case)));
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// What is wrong with the end of `run`, which must be exit code 1 with an error line that holds `parts`.
fn fault(case: &Case, run: &Run, parts: &[&str]) -> Option<String> {
    let is_error = |line: &str| line.contains(" E ") && parts.iter().all(|p| line.contains(p));
    let refused = run.code == Some(1) && run.stderr.lines().any(is_error);
    (!refused).then(|| format!("{}: {:?}, expected {parts:?}\n{}", case.name, run.code, run.stderr))
}

#[test]
fn the_intact_files_run() {
    for file in [good::model(), good::coded(), good::seeddelta()] {
        let whole = run(&Gguf::bytes(&file)).ok();
        let folder = TempDir::new().unwrap();
        let paths = [1, 2, 3].map(|n| folder.path().join(format!("good-0000{n}-of-00003.gguf")));
        for (path, part) in paths.iter().zip(good::parts(&file, 3)) {
            std::fs::write(path, part.bytes()).unwrap();
        }
        assert_eq!(run_on(FLAGS, &paths[0]).ok().stdout, whole.stdout);
    }
    for family in Family::ALL {
        println!("{family:?}");
        let _ = run(&family.model().bytes()).ok();
        if family.has_ffn() {
            let run = run(&hostile::sound(family).bytes()).ok();
            assert!(run.stderr.contains("1 FFN tensors run from codes"), "{}", run.stderr);
        }
    }
}

/// Such a code never runs, and neither does the model beside it.
#[test]
fn codes_for_weights_that_nobody_may_code_are_refused_by_name() {
    let cases = hostile::misplaced();
    assert_eq!(cases.len(), 4 * 5 * 3 + 5, "every family, part and code; and experts");
    for flags in [FLAGS, DENSE_FLAGS] {
        refused_with(flags, &cases, |case| case.says.clone());
    }
}

#[test]
fn coded_tensors_that_lie_are_refused_by_name() {
    refused(&hostile::coded(), |case| case.says.clone());
    refused(&hostile::strays(), |case| case.says.clone());
}

#[test]
fn broken_files_are_refused() {
    for cases in [hostile::structure(), hostile::truncated(), hostile::models()] {
        refused(&cases, |_| vec!["error loading model"]);
    }
}

#[test]
fn broken_parts_are_refused() {
    let mut faults = Vec::new();
    for parts in hostile::parts().iter().filter(|p| p.case.llama_refuses) {
        let folder = TempDir::new().unwrap();
        let run = run_on(FLAGS, &parts.write(folder.path()));
        faults.extend(fault(&parts.case, &run, &["error loading model"]));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
