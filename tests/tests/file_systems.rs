//! File systems that lack an operation or take no large files, by the kernel's answers: what is complete is not
//! reported as failed, and what fails is told with a way out that works.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use end_to_end::programs::{Run, command};
use end_to_end::refusing::{Refusal, refuse};
use fixtures::models::Model;
use tempfile::TempDir;

/// Writes of that many bytes or fewer are of locks, records and checkpoints of the small model.
const LARGE: u32 = 30_000;

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        Model::default().write(&fixture.path("model.gguf")).unwrap();
        let text: String = (0..60).map(|i| format!("Line {i} that nobody will read.\n")).collect();
        fs::write(fixture.path("text.txt"), text).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn program(&self, line: &str) -> Command {
        let (name, flags) = line.split_once(' ').unwrap();
        let mut command = command(name, flags.split(' '));
        command.current_dir(self.0.path());
        command
    }

    /// Runs `line`, which must succeed, where the kernel refuses some calls; what it says.
    fn does(&self, line: &str, refusals: &[Refusal]) -> String {
        self.run(line, refusals).ok().stderr
    }

    /// Runs `line` where the kernel refuses some calls.
    fn run(&self, line: &str, refusals: &[Refusal]) -> Run {
        let mut command = self.program(line);
        refuse(&mut command, refusals);
        Run::from(command.output().expect("the program starts, under a filter of system calls"))
    }
}

fn build(output: &str) -> String {
    format!("statecells-build -i model.gguf -o {output} --no-calib --S 4 --rounds 1 --beam 2 -t 1")
}

fn calib(output: &str) -> String {
    format!("statecells-calib -m model.gguf -f text.txt -o {output} --ctx 64 --tokens 1280 -t 1")
}

/// Whether a part of a message between colons is said twice.
fn says_twice(line: &str) -> bool {
    let parts: Vec<&str> = line.split(": ").filter(|p| p.len() > 8).collect();
    parts.iter().enumerate().any(|(i, part)| parts[..i].contains(part))
}

fn failed<'a>(run: &'a Run, parts: &[&str]) -> &'a str {
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let line = run.line(parts);
    assert!(line.contains("error: ") && !says_twice(line), "{line}");
    assert_eq!(run.stderr.lines().last(), Some(line));
    line
}

#[test]
fn a_file_system_without_locks_is_told_of_and_written_to() {
    let fixture = Fixture::new();
    let said = fixture.does(&build("plain.gguf"), &[]);
    assert!(!said.contains("warning"), "{said}");
    for error in [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOLCK] {
        let locks = [Refusal::of(libc::SYS_flock, error)];
        let run = fixture.run(&format!("{} --force", build("out.gguf")), &locks).ok();
        let _ = run.line(&["warning: ", "out.gguf.statecells-work", "no locks", "no other build"]);
        assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("plain.gguf"));
        // A folder that is there already, too.
        fs::create_dir(fixture.path("out.gguf.statecells-work")).unwrap();
        fixture.does(&format!("{} --resume", build("out.gguf")), &locks);
        assert_eq!(fixture.names(), ["model.gguf", "out.gguf", "plain.gguf", "text.txt"]);
    }
    let held = [Refusal::of(libc::SYS_flock, libc::EWOULDBLOCK)];
    failed(&fixture.run(&build("other.gguf"), &held), &["another build is writing here"]);
}

#[test]
fn what_cannot_be_flushed_is_complete_all_the_same() {
    let fixture = Fixture::new();
    fixture.does(&build("plain.gguf"), &[]);
    fixture.does(&calib("plain-calib.gguf"), &[]);
    for error in [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP] {
        let flushes = [Refusal::of(libc::SYS_fsync, error)];
        let report = format!("{} --force --report-json report.json", build("out.gguf"));
        fixture.does(&report, &flushes);
        assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("plain.gguf"));
        fixture.does(&format!("{} --force", calib("calib.gguf")), &flushes);
        assert_eq!(fixture.bytes("calib.gguf"), fixture.bytes("plain-calib.gguf"));
    }
    let broken = [Refusal::of(libc::SYS_fsync, libc::EIO)];
    failed(&fixture.run(&build("broken.gguf"), &broken), &["cannot flush", "Input/output"]);
    failed(&fixture.run(&calib("broken.gguf"), &broken), &["cannot flush", "Input/output"]);
    assert!(!fixture.path("broken.gguf").exists());
}

#[test]
fn a_write_that_fails_is_told_once_with_a_way_out_that_the_program_has() {
    let fixture = Fixture::new();
    let large = |error| [Refusal { call: libc::SYS_write, error, above: Some((2, LARGE)) }];
    for (error, way_out) in [
        (libc::EFBIG, "choose another file system, or lift the limit"),
        (libc::ENOSPC, "make room and run again"),
        (libc::EDQUOT, "make room and run again"),
    ] {
        let run = fixture.run(&format!("{} --resume", build("out.gguf")), &large(error));
        let line = failed(&run, &["out.gguf", "cannot write", way_out, "6 finished tensors"]);
        assert!(line.contains("--resume"), "{line}");
        assert_eq!(line.contains("make room"), error != libc::EFBIG, "{line}");
        let run = fixture.run(&calib("calib.gguf"), &large(error));
        let line = failed(&run, &["calib.gguf", "cannot write", way_out]);
        assert!(!line.contains("--resume") && !line.contains(" -i"), "{line}");
        let names = ["model.gguf", "out.gguf.statecells-work", "text.txt"];
        assert_eq!(fixture.names(), names);
    }
    let run = fixture.run(&format!("{} --resume", build("out.gguf")), &[]).ok();
    assert!(!run.stderr.contains("[1/"), "nothing is coded again: {}", run.stderr);
}

/// Where not even a record or a checkpoint can be written, no trace is left.
#[test]
fn a_disk_that_is_full_from_the_start_stays_as_it_was() {
    let fixture = Fixture::new();
    // Messages of the program are shorter.
    for least in [200, 500, 2000] {
        let above = Some((2, least));
        let full = Refusal { call: libc::SYS_write, error: libc::ENOSPC, above };
        let run = fixture.run(&build("out.gguf"), &[full]);
        failed(&run, &["cannot write", "make room"]);
        assert_eq!(fixture.names(), ["model.gguf", "text.txt"], "{}", run.stderr);
    }
}

#[test]
fn a_limit_that_the_output_exceeds_is_known_at_the_start() {
    let fixture = Fixture::new();
    fixture.does(&build("plain.gguf"), &[]);
    let with_limit = |line: &str, bytes: u64| {
        let mut command = fixture.program(line);
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
        let set = move || {
            // SAFETY: the limit is a valid one.
            match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: a single system call between fork and exec.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, set) };
        Run::from(command.output().expect("the program starts"))
    };
    let names = fixture.names();
    for line in [build("out.gguf"), format!("{} --dry-run", build("out.gguf")), calib("c.gguf")] {
        let run = with_limit(&line, 50_000);
        let said = failed(&run, &["a file of about", "ulimit -f", "50000", "lift it"]);
        assert!(!said.contains("make room"), "{said}");
        assert_eq!((run.stderr.lines().count(), fixture.names()), (1, names.clone()));
    }
    // The estimate leaves out what is about the tensors: what it overlooks is an error of the write, no signal.
    let n_bytes = fixture.bytes("plain.gguf").len() as u64;
    let run = with_limit(&build("out.gguf"), n_bytes - 1);
    failed(&run, &["out.gguf", "cannot write", "lift the limit", "6 finished tensors", "--resume"]);
}
