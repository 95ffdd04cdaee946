//! The corpus of bad files through the program itself. Files whose structure is broken are refused; what lies is
//! shown as it is, as long as it can be read, and nothing commands the terminal.

use std::path::Path;
use std::process::{Command, Output};

use fixtures::hostile::{self, Case, check};

/// KiB of address space in which a claimed gigabyte has no room.
const ADDRESS_SPACE: u64 = 512 << 10;

struct Inspect(tempfile::TempDir);

impl Inspect {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, case: &Case, flags: &[&str]) -> Output {
        std::fs::write(self.0.path().join("bad.gguf"), &case.bytes).unwrap();
        self.run_on(Path::new("bad.gguf"), flags)
    }

    fn run_on(&self, path: &Path, flags: &[&str]) -> Output {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"")]);
        command.arg(assert_cmd::cargo::cargo_bin!("statecells-inspect")).arg(path);
        command.args(flags).current_dir(self.0.path()).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn broken_files_are_refused_in_one_line() {
    let inspect = Inspect::new();
    for case in [hostile::structure(), hostile::truncated(), hostile::foreign()].concat() {
        let output = inspect.run(&case, &[]);
        let said = text(&output.stderr);
        let fault = check::fault(&case, said.strip_suffix('\n').unwrap_or(&said));
        assert_eq!((fault, output.status.code()), (None, Some(1)), "{}", case.name);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn broken_parts_are_refused_in_one_line() {
    let inspect = Inspect::new();
    for (i, parts) in hostile::parts().iter().enumerate() {
        let output = inspect.run_on(&parts.write(&inspect.0.path().join(i.to_string())), &[]);
        let said = text(&output.stderr);
        let fault = check::fault(&parts.case, said.strip_suffix('\n').unwrap_or(&said));
        assert_eq!((fault, output.status.code()), (None, Some(1)), "{}", parts.case.name);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn whatever_a_file_says_the_program_ends_by_itself() {
    let inspect = Inspect::new();
    for case in hostile::all_gguf() {
        for flags in [[].as_slice(), &["--json"]] {
            let output = inspect.run(&case, flags);
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1)), "{}: {}\n{err}", case.name, output.status);
            assert_eq!(err.lines().count(), usize::from(code == Some(1)), "{}: {err}", case.name);
            let command = |c: char| c.is_control() && c != '\n';
            assert!(!out.contains(command) && !err.contains(command), "{}: {out}{err}", case.name);
        }
    }
}
