//! Running llama.cpp's programs: with a log, a measured peak of memory, and an ear for requests to stop.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use program::Interrupt;
use program::machine::peak_bytes;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use wait4::Wait4;

use crate::Error;
use crate::error::io;
use crate::logs;

/// How often a running program is looked after.
const POLL: Duration = Duration::from_millis(50);

/// In how many of these times its log is read.
const POLLS_PER_LOOK: u32 = 8;

/// Flags that a user gave llama.cpp by another way would change what is measured.
const FOREIGN_FLAGS: &str = "LLAMA_ARG_";

/// The folder with llama.cpp's programs.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The program `name`.
    ///
    /// # Errors
    /// [`Error::Program`] if it is not there.
    pub fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let reason = format!(
            "not found in {}: build it with ./scripts/build-llama.sh, or name its folder with --bin-dir",
            self.folder.display()
        );
        Err(Error::program(name, reason))
    }

    /// What `name --help` says.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn help(&self, name: &str) -> Result<String, Error> {
        let mut command = Command::new(self.path(name)?);
        without_foreign_flags(&mut command);
        let output = command.arg("--help").stdin(Stdio::null()).output();
        let output = output.map_err(|e| Error::program(name, format!("cannot be started: {e}")))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A program with its arguments, and where its output goes.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Name of the program, for messages.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// File for its output; standard output goes there too unless `stdout` names another.
    pub log: PathBuf,
    /// File for standard output alone.
    pub stdout: Option<PathBuf>,
}

/// What a finished program needed.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Peak resident memory in bytes: as Linux counts it for the running program, or, where that cannot be
    /// read, by `wait4`. The latter starts at this program's own size, because a child begins as its copy.
    pub peak_bytes: u64,
    /// Seconds from start to end.
    pub seconds: f64,
}

impl Invocation {
    /// The command line.
    #[must_use]
    pub fn command_line(&self) -> Vec<String> {
        let all = std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str));
        all.map(|a| OsStr::to_string_lossy(a).into_owned()).collect()
    }

    /// Runs it to its end. `watch` is given the log so far, now and then.
    ///
    /// # Errors
    /// [`Error::Program`] if it cannot be started or fails, with the reason that its log gives;
    /// [`Error::Stopped`] if `interrupt` is set meanwhile; [`Error::Common`] for the log.
    pub fn run(&self, interrupt: &Interrupt, mut watch: impl FnMut(&str)) -> Result<Usage, Error> {
        let started = Instant::now();
        let mut child = self.spawn()?;
        let pid = rustix::process::Pid::from_child(&child);
        let (mut asked, mut polls, mut peak) = (false, 0u32, None);
        // The child is looked at without being reaped, so that its number stays its own as long as it is used.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), look), Ok(None)) {
            std::thread::sleep(POLL);
            if interrupt.is_set() && !asked {
                // It may have ended by itself; then there is nothing to stop.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                asked = true;
            }
            peak = peak_bytes(pid.as_raw_nonzero().get()).max(peak);
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(POLLS_PER_LOOK) {
                watch(&read_lossy(&self.log));
            }
        }
        let ended = child.wait4();
        let ended =
            ended.map_err(|e| Error::program(self.name, format!("cannot be waited for: {e}")))?;
        if interrupt.is_set() {
            return Err(Error::Stopped);
        }
        let usage = Usage {
            peak_bytes: peak.unwrap_or(ended.rusage.maxrss),
            seconds: started.elapsed().as_secs_f64(),
        };
        if ended.status.success() { Ok(usage) } else { Err(self.failure(ended.status)) }
    }

    fn spawn(&self) -> Result<Child, Error> {
        let log = File::create(&self.log).map_err(io(&self.log, "write"))?;
        let copy = log.try_clone().map_err(io(&self.log, "write"))?;
        let stdout = match &self.stdout {
            Some(path) => File::create(path).map_err(io(path, "write"))?,
            None => copy,
        };
        let mut command = Command::new(&self.program);
        without_foreign_flags(&mut command);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(stdout).stderr(log);
        command.spawn().map_err(|e| Error::program(self.name, format!("cannot be started: {e}")))
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let log = read_lossy(&self.log);
        let reason = logs::explanation(&log).unwrap_or_else(|| "without a message".to_owned());
        Error::program(self.name, format!("{status}: {reason} (log: {})", self.log.display()))
    }
}

/// A log as text, or nothing if there is none.
#[must_use]
pub fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Keeps flags in the environment from `command`.
pub(crate) fn without_foreign_flags(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(FOREIGN_FLAGS) {
            command.env_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(folder: &Path, script: &str) -> Invocation {
        Invocation {
            name: "sh",
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: folder.join("log"),
            stdout: None,
        }
    }

    #[test]
    fn the_peak_of_memory_is_that_of_the_child() {
        let folder = tempfile::tempdir().unwrap();
        let small =
            invocation(folder.path(), "sleep 0.3").run(&Interrupt::default(), |_| ()).unwrap();
        let script = "x=$(head -c 60000000 /dev/zero | tr '\\0' a); echo ${#x}; sleep 0.3";
        let large = invocation(folder.path(), script).run(&Interrupt::default(), |_| ()).unwrap();
        assert!(small.peak_bytes < 10_000_000, "{small:?}");
        assert!(large.peak_bytes > 60_000_000, "{large:?}");
        assert_eq!(read_lossy(&folder.path().join("log")).trim(), "60000000");
    }

    #[test]
    fn a_failure_names_program_reason_and_log() {
        let folder = tempfile::tempdir().unwrap();
        let failed = invocation(folder.path(), "echo 'error: no model' >&2; exit 3");
        let text = failed.run(&Interrupt::default(), |_| ()).unwrap_err().to_string();
        assert!(text.starts_with("sh: exit status: 3: error: no model (log: "), "{text}");
        let missing = Invocation { program: "/no/program".into(), ..failed };
        assert!(
            missing
                .run(&Interrupt::default(), |_| ())
                .unwrap_err()
                .to_string()
                .contains("cannot be started")
        );
    }

    #[test]
    fn a_missing_program_names_the_way_out() {
        let text = Programs::new("/nowhere".into()).path("llama-bench").unwrap_err().to_string();
        assert!(text.contains("--bin-dir") && text.contains("/nowhere"), "{text}");
    }
}
