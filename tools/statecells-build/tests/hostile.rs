//! The corpus of bad files through the program itself: exit code 1, one line, nothing left behind, and an address
//! space in which a claimed gigabyte has no room.

mod common;

use std::process::{Command, Output};

use common::{Fixture, stderr};
use fixtures::hostile::{self, Case, check, good};

/// KiB of address space: what the program needs for an intact file of the corpus, on one thread, is less. Dense products take
/// twice the third-level cache, which has 105 MiB on some CPUs.
const ADDRESS_SPACE: u64 = 960 << 10;

/// The program on one thread; `flags` are split at spaces.
fn run(fixture: &Fixture, flags: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"")]);
    command.arg(assert_cmd::cargo::cargo_bin!("statecells-build")).current_dir(fixture.dir());
    command.args(flags.split(' ')).args(["-t", "1"]).output().unwrap()
}

/// Runs the program for each case, which stands in `name`.
fn all_refused(fixture: &Fixture, cases: &[Case], name: &str, flags: &str) {
    let mut faults = Vec::new();
    let mut left = fixture.names();
    left.push(name.to_owned());
    left.sort();
    left.dedup();
    for case in cases {
        std::fs::write(fixture.path(name), &case.bytes).unwrap();
        let output = run(fixture, flags);
        let said = stderr(&output);
        faults.extend(check::fault(case, said.strip_suffix('\n').unwrap_or(&said)));
        if output.status.code() != Some(1) || !said.starts_with("statecells-build: error: ") {
            faults.push(format!("{}: {}: {said}", case.name, output.status));
        }
        assert_eq!(fixture.names(), left, "{}", case.name);
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

fn fixture() -> Fixture {
    let fixture = Fixture::small();
    std::fs::write(fixture.path("model.gguf"), good::model().bytes()).unwrap();
    fixture
}

const SIGN: &str = "-i model.gguf -o out.gguf --row-scale --dict-M 8 --dict-k 2";

#[test]
fn bad_models() {
    let fixture = fixture();
    for cases in [hostile::models(), hostile::structure(), hostile::truncated(), hostile::foreign()]
    {
        all_refused(&fixture, &cases, "model.gguf", SIGN);
    }
}

#[test]
fn bad_parts_of_a_model() {
    let fixture = fixture();
    let mut faults = Vec::new();
    for (i, parts) in hostile::parts().iter().enumerate() {
        let folder = fixture.path(&i.to_string());
        let path = parts.write(&folder);
        let input = path.strip_prefix(fixture.dir()).unwrap().display();
        let output = run(&fixture, &SIGN.replace("model.gguf", &input.to_string()));
        let said = stderr(&output);
        faults.extend(check::fault(&parts.case, said.strip_suffix('\n').unwrap_or(&said)));
        if output.status.code() != Some(1) || !said.starts_with("statecells-build: error: ") {
            faults.push(format!("{}: {}: {said}", parts.case.name, output.status));
        }
        assert!(!fixture.path("out.gguf").exists(), "{}", parts.case.name);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn bad_importance_matrices() {
    let flags = format!("{SIGN} --imatrix imatrix.gguf");
    for cases in [hostile::imatrices(), hostile::old_imatrices()] {
        all_refused(&fixture(), &cases, "imatrix.gguf", &flags);
    }
}

#[test]
fn bad_sensitivities() {
    let flags = "-i model.gguf -o out.gguf --bpw 7 --sensitivity s.json";
    all_refused(&fixture(), &hostile::sensitivities(), "s.json", flags);
}

/// What the bad files were made from is built, in the same address space.
#[test]
fn the_intact_files_are_taken() {
    let fixture = fixture();
    std::fs::write(fixture.path("imatrix.gguf"), good::imatrix().bytes()).unwrap();
    std::fs::write(fixture.path("old.dat"), good::old_imatrix()).unwrap();
    std::fs::write(fixture.path("s.json"), good::SENSITIVITY).unwrap();
    for flags in [
        format!("{SIGN} --imatrix imatrix.gguf"),
        format!("{SIGN} --imatrix old.dat --force"),
        "-i model.gguf -o sections.gguf --bpw 7 --sensitivity s.json".to_owned(),
    ] {
        let output = run(&fixture, &flags);
        assert!(output.status.success(), "{flags}: {}", stderr(&output));
    }
}
