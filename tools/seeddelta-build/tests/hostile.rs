//! Bad policies through the program itself: exit code 1, one line, nothing left behind.

use std::process::Command;

use fixtures::hostile::{self, check, good};

#[test]
fn bad_policies_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("model.gguf"), good::model().bytes()).unwrap();
    let run = || {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("seeddelta-build"));
        command.current_dir(folder.path()).args(["-i", "model.gguf", "-o", "out.gguf"]);
        command.args(["--policy", "policy.json", "-t", "1"]).output().unwrap()
    };
    let mut faults = Vec::new();
    for case in hostile::policies() {
        std::fs::write(path("policy.json"), &case.bytes).unwrap();
        let output = run();
        let said = String::from_utf8(output.stderr).unwrap();
        faults.extend(check::fault(&case, said.strip_suffix('\n').unwrap_or(&said)));
        if output.status.code() != Some(1) || !said.starts_with("seeddelta-build: error: ") {
            faults.push(format!("{}: {}: {said}", case.name, output.status));
        }
        assert!(!path("out.gguf").exists(), "{}", case.name);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    std::fs::write(path("policy.json"), good::POLICY).unwrap();
    assert!(run().status.success());
}
