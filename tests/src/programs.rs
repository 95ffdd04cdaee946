//! The programs and models under test, and how they are run.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No run of these tests takes as long; a program that does hangs.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The real model of the tests, as `scripts/fetch-model.sh` names it.
const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The program `name` in the folder that STATECELLS_BIN_DIR names, or in `bin`.
///
/// # Panics
/// If it is not there: tests of programs that were not built show nothing.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = folder("STATECELLS_BIN_DIR", "bin").join(name);
    assert!(path.is_file(), "{} is missing: run ./scripts/test.sh", path.display());
    path
}

/// SmolLM2 in the folder that STATECELLS_MODELS_DIR names, or in `models`.
///
/// `None` after a line that says so, if nobody has fetched the model.
///
/// # Panics
/// If the variable is set and the model is not there.
#[must_use]
pub fn smollm2() -> Option<PathBuf> {
    let path = folder("STATECELLS_MODELS_DIR", "models").join(SMOLLM2);
    if path.is_file() {
        return Some(path);
    }
    assert!(env::var_os("STATECELLS_MODELS_DIR").is_none(), "{} is missing", path.display());
    skip(&format!("no {}; run ./scripts/fetch-model.sh", path.display()));
    None
}

/// The Python with the packages gguf and numpy that STATECELLS_PYTHON names, or that of `.tools`.
///
/// `None` after a line that says so, if there is neither.
#[must_use]
pub fn python() -> Option<PathBuf> {
    if let Some(path) = env::var_os("STATECELLS_PYTHON") {
        return Some(path.into());
    }
    let path = root().join(".tools/venv/bin/python");
    if path.is_file() {
        return Some(path);
    }
    skip(&format!("no {}; run ./scripts/setup-tools.sh --test", path.display()));
    None
}

/// Folder of the browser that STATECELLS_BROWSER_DIR names, or of `.tools`, by scripts/setup-browser.sh.
///
/// `None` after a line that says so, if there is neither.
///
/// # Panics
/// If the variable is set and there is no browser.
#[must_use]
pub fn browser() -> Option<PathBuf> {
    let path = folder("STATECELLS_BROWSER_DIR", ".tools/browser");
    if path.join("node_modules").is_dir() {
        return Some(path);
    }
    assert!(env::var_os("STATECELLS_BROWSER_DIR").is_none(), "{} is missing", path.display());
    skip(&format!("no {}; run ./scripts/setup-browser.sh", path.display()));
    None
}

/// Opens `page` in the browser in the folder `browser`, narrow and wide, light and dark.
///
/// # Panics
/// If it has a fault, with all of them.
pub fn check_page(browser: &Path, page: &Path) {
    let script = root().join("tests/browser/check_page.mjs");
    let output = Command::new("node").args([&script, browser, page]).output();
    let output = output.expect("node starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}:\n{said}", page.display());
    // Each of the four views must have been looked at, and show pictures.
    assert_eq!(said.matches("pictures, no fault").count(), 4, "{said}");
    assert!(!said.contains(" 0 pictures"), "{said}");
}

/// Says why a test is skipped, past the test runner, which hides what a passing test prints.
fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(io::stderr(), "{test}: SKIPPED: {reason}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| root().join(default), PathBuf::from)
}

/// Makes the threads of llama.cpp sleep while they wait for each other: tests run side by side, and threads that
/// spin instead keep those from work that they wait for.
pub(crate) const PATIENCE: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

/// What a program did.
#[derive(Debug)]
pub struct Run {
    /// Exit code; `None` if a signal ended the program.
    pub code: Option<i32>,
    /// Standard output as it came; random models write bytes that are not UTF-8.
    pub stdout: Vec<u8>,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

impl Run {
    /// Runs the program `name` to its end, without input.
    ///
    /// # Panics
    /// If it is missing or hangs.
    #[must_use]
    pub fn of<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::to_the_end(command(name, arguments))
    }

    /// The same for a [`command`] that the test has changed.
    ///
    /// # Panics
    /// As [`Self::of`].
    #[must_use]
    pub fn to_the_end(command: Command) -> Self {
        let name = command.get_program().to_owned();
        let mut command = assert_cmd::Command::from_std(command);
        command.timeout(TIMEOUT);
        let started = Instant::now();
        let run = Self::from(command.output().expect("the program starts"));
        assert!(started.elapsed() < TIMEOUT, "{} hangs: {}", name.display(), run.stderr);
        run
    }

    /// The same, for a program that must succeed.
    ///
    /// # Panics
    /// If it does not, with its messages.
    #[must_use]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// The line of the messages that holds all of `parts`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn line(&self, parts: &[&str]) -> &str {
        let found = self.stderr.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        found.unwrap_or_else(|| panic!("no line with {parts:?} in:\n{}", self.stderr))
    }

    /// Standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The program `name` with `arguments`, in an environment that adds no others.
///
/// # Panics
/// If the program is missing.
#[must_use]
pub fn command<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program(name));
    command.env(PATIENCE.0, PATIENCE.1).args(arguments);
    for (variable, _) in env::vars_os() {
        // Flags of llama.cpp by another way: the tests give all they mean.
        if variable.to_string_lossy().starts_with("LLAMA_ARG_") {
            command.env_remove(variable);
        }
    }
    command
}

/// The most memory that a program used, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// All of its resident pages, those of mapped files among them.
    pub resident: u64,
    /// Pages of its own alone, looked at every 2 ms.
    pub own: u64,
}

/// Runs the program `name`, which must succeed, and watches its memory.
///
/// # Panics
/// If it does not succeed, or /proc does not tell its memory.
#[must_use]
pub fn peak_of<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Peak {
    let mut command = command(name, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a start");
    let mut peak = Peak::default();
    let started = Instant::now();
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let bytes = |key: &str| -> u64 {
            let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_suffix("kB"));
            line.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| 1024 * kib)
        };
        peak.resident = peak.resident.max(bytes("VmHWM:"));
        peak.own = peak.own.max(bytes("RssAnon:"));
        assert!(started.elapsed() < TIMEOUT, "{name} hangs");
        match child.try_wait().expect("a child to wait for") {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(status.success(), "{name}: {status}");
    assert!(peak.own > 0 && peak.resident >= peak.own, "/proc does not tell the memory of {name}");
    peak
}

/// Checks that a program was refused: by an exit code, not by a signal, and with a line that holds `parts`.
///
/// # Panics
/// If it was not.
pub fn assert_refused(run: &Run, parts: &[&str]) {
    let code = run.code.unwrap_or_else(|| panic!("ended by a signal:\n{}", run.stderr));
    assert_ne!(code, 0, "not refused, expected a line with {parts:?}:\n{}", run.stderr);
    let _ = run.line(parts);
}
