//! What the tests of the program share: a small model in a folder of its own, and how to run the program.
#![allow(dead_code, reason = "every test program uses another part")]

pub mod calibration;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use fixtures::models::Model;
use ggml::gguf::{GgufFile, GgufWriter};

/// Flags that keep the codec quick.
pub const QUICK: [&str; 8] =
    ["--dict-M", "24", "--dict-k", "4", "--dict-iters", "1", "--dict-refine", "1"];

/// A folder with `model.gguf` in it.
pub struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new(model: &Model) -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        model.write(&fixture.path("model.gguf")).unwrap();
        fixture
    }

    pub fn small() -> Self {
        Self::new(&Model::default())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The program in the folder, with these flags only.
    pub fn plain(&self, flags: &str) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("statecells-build"));
        command.current_dir(self.dir()).args(flags.split_whitespace());
        command
    }

    /// The program on one thread with [`QUICK`] and further flags, by default with the scheme `sign+row_scale`.
    pub fn quick(&self, flags: &str) -> Command {
        let mut command = self.plain(flags);
        let names_scheme = ["--scheme", "--vals", "--no-vals", "--row-scale", "--no-row-scale"];
        if !names_scheme.iter().any(|flag| flags.contains(flag)) {
            command.arg("--row-scale");
        }
        // A dictionary of atoms over the whole input is a contradiction to sections.
        if !flags.contains("--scheme sections") {
            command.args(QUICK);
        }
        if !flags.contains("-t ") {
            command.args(["-t", "1"]);
        }
        command
    }

    /// A build of `model.gguf` to `output` that must succeed.
    pub fn build(&self, output: &str, flags: &str) {
        succeeds(&mut self.quick(&format!("-i model.gguf -o {output} {flags}")));
    }

    /// Rewrites `model.gguf` with another tensor of ones in F32.
    pub fn add_tensor(&self, name: &str, dims: &[usize]) {
        let path = self.path("model.gguf");
        let file = GgufFile::open(&path).unwrap();
        let mut writer = GgufWriter::new();
        writer.copy_metadata_from(&file, |_| true);
        for tensor in file.tensors() {
            writer.add_tensor(tensor.name(), tensor.ty(), tensor.dims()).unwrap();
        }
        writer.add_tensor(name, ggml::Type::F32, dims).unwrap();
        let added = 1.0f32.to_le_bytes().repeat(dims.iter().product());
        let data = |i: usize| file.tensors().get(i).map_or(added.as_slice(), |t| file.data(t));
        let mut out = Vec::new();
        writer.write(&mut out, |i, out| out.write_all(data(i))).unwrap();
        fs::write(path, out).unwrap();
    }

    /// Changes one byte of a file.
    pub fn flip(&self, name: &str, at: usize) {
        let mut bytes = self.bytes(name);
        bytes[at] ^= 0x40;
        fs::write(self.path(name), bytes).unwrap();
    }
}

/// Data of all tensors of `output` whose names end in `suffix`.
pub fn data(fixture: &Fixture, output: &str, suffix: &str) -> Vec<Vec<u8>> {
    let file = GgufFile::open(&fixture.path(output)).unwrap();
    let named = file.tensors().iter().filter(|t| t.name().ends_with(suffix));
    named.map(|t| file.data(t).to_vec()).collect()
}

/// A program that has said `line`, and what it says from then on.
pub fn running_at(
    command: &mut Command,
    line: &str,
) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|said| said.contains(line)), "'{line}' was not said");
    (child, lines)
}

/// Runs a program until it says `line`, and kills it.
pub fn killed_at(command: &mut Command, line: &str) {
    let (mut child, _lines) = running_at(command, line);
    child.kill().unwrap();
    child.wait().unwrap();
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    output
}

/// Runs the program, which must fail with `code` and one line on stderr that holds all of `parts`.
pub fn fails(command: &mut Command, code: i32, parts: &[&str]) {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{command:?}: {text}");
    assert!(lines[0].starts_with("statecells-build: "), "{text}");
    for part in parts {
        assert!(lines[0].contains(part), "'{part}' is not in: {text}");
    }
}
