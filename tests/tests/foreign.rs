//! What people give in the place of a model, to every program that takes one: the file is named, what it is, and what to
//! give instead, in one line and before anything else happens.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, program};
use fixtures::hostile::{self, Case, check};
use fixtures::models::Model;
use tempfile::TempDir;

/// Every program with its flags: `MODEL` is what is given, the rest is as it should be.
const PROGRAMS: [(&str, &str); 8] = [
    ("statecells-build", "-i MODEL -o out.gguf"),
    ("statecells-build", "-i MODEL --dry-run"),
    ("seeddelta-build", "-i MODEL -o out.gguf"),
    ("statecells-calib", "-m MODEL -f text.txt -o calib.gguf"),
    ("statecells-inspect", "MODEL"),
    ("statecells-inspect", "base.gguf --compare MODEL"),
    ("statecells-eval", "--base MODEL --sc coded.gguf --text text.txt --outdir out"),
    ("statecells-eval", "--base base.gguf --sc MODEL --text text.txt --outdir out"),
];

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(TempDir::new().unwrap());
        Model::default().write(&fixture.path("base.gguf")).unwrap();
        let base = ModelFile::read(&fixture.path("base.gguf"));
        Twins::of(&base, &Coding::default()).coded.write(&fixture.path("coded.gguf"));
        std::fs::write(fixture.path("text.txt"), "some words ".repeat(600)).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A shell in the folder that runs `script`, where each word that is a program's name stands for its path.
    fn shell(&self, script: &str) -> Run {
        let word = |word: &str| match word.starts_with("statecells-") || word == "seeddelta-build" {
            true => program(word).display().to_string(),
            false => word.to_owned(),
        };
        let script: Vec<String> = script.split(' ').map(word).collect();
        let mut command = Command::new("bash");
        command.args(["-c", &script.join(" ")]).current_dir(self.0.path()).stdin(Stdio::null());
        let mut command = assert_cmd::Command::from_std(command);
        command.timeout(Duration::from_secs(60));
        command.output().expect("bash starts").into()
    }

    /// Gives what `model` names to every program, in a folder where that leaves nothing behind.
    fn refused_by_all(&self, model: &str, case: &Case, faults: &mut Vec<String>) {
        let before = self.names();
        for (name, flags) in PROGRAMS {
            let run = self.shell(&format!("{name} {}", flags.replace("MODEL", model)));
            let said = run.stderr.trim_end_matches('\n');
            if let Some(fault) = check::fault(case, said) {
                faults.push(format!("{name} {flags}: {fault}"));
            }
            if run.code != Some(1) || !run.stdout.is_empty() {
                faults.push(format!("{name} {flags}: {}: {:?}", case.name, run.code));
            }
        }
        assert_eq!(self.names(), before, "{}", case.name);
    }
}

fn case(name: &str, says: &[&'static str]) -> Case {
    Case { name: name.to_owned(), bytes: Vec::new(), says: says.to_vec(), llama_refuses: false }
}

#[test]
fn files_of_other_kinds_are_named_and_what_to_give_instead() {
    let fixture = Fixture::new();
    let mut faults = Vec::new();
    for case in hostile::foreign() {
        std::fs::write(fixture.path("model.gguf"), &case.bytes).unwrap();
        let case = Case { says: [&["model.gguf: "][..], &case.says].concat(), ..case };
        fixture.refused_by_all("model.gguf", &case, &mut faults);
    }
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn pipes_devices_and_folders_are_named_and_nothing_waits_for_them() {
    let fixture = Fixture::new();
    std::fs::create_dir_all(fixture.path("empty")).unwrap();
    std::fs::create_dir_all(fixture.path("checkpoint")).unwrap();
    std::fs::create_dir_all(fixture.path("models")).unwrap();
    std::fs::write(fixture.path("checkpoint/config.json"), "{}").unwrap();
    std::fs::write(fixture.path("models/m.GGUF"), "").unwrap();
    let fifo = Command::new("mkfifo").arg(fixture.path("fifo")).status().unwrap();
    assert!(fifo.success());
    let on_disk = "write it to a disk";
    let mut faults = Vec::new();
    for (model, says) in [
        ("fifo", &["fifo: ", "a pipe", on_disk][..]),
        ("<(cat base.gguf)", &["/dev/fd/", "a pipe", on_disk]),
        ("-", &["-: ", "standard input", on_disk]),
        ("/dev/null", &["/dev/null: ", "a device", on_disk]),
        ("empty", &["empty: ", "a folder", "give a GGUF file"]),
        ("models", &["models: ", "a folder", "give the GGUF file in it"]),
        ("checkpoint", &["checkpoint: ", "model for other programs", "convert_hf_to_gguf.py"]),
    ] {
        fixture.refused_by_all(model, &case(model, says), &mut faults);
    }
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
    let piped = fixture.shell("cat base.gguf | statecells-inspect /dev/stdin");
    assert_eq!(
        check::fault(&case("stdin", &["/dev/stdin: ", "a pipe"]), piped.stderr.trim()),
        None
    );
    // A file is a file under any name.
    let file = fixture.shell("statecells-inspect /dev/stdin < base.gguf").ok();
    assert!(file.text().contains("llama 'random test model', 2 layers"), "{}", file.text());
}

#[test]
fn an_output_is_never_the_standard_output() {
    let fixture = Fixture::new();
    let before = fixture.names();
    let says = ["-: cannot write", "standard output", "name a file"];
    for script in [
        "statecells-build -i base.gguf -o -",
        "statecells-build -i base.gguf -o out.gguf --report-json -",
        "seeddelta-build -i base.gguf -o -",
        "statecells-calib -m base.gguf -f text.txt -o -",
    ] {
        let run = fixture.shell(script);
        assert_eq!(check::fault(&case(script, &says), run.stderr.trim_end()), None);
        assert_eq!((run.code, run.stdout.len(), fixture.names()), (Some(1), 0, before.clone()));
    }
    let _ = fixture.shell("seeddelta-build -i base.gguf -o ./-").ok();
    assert!(fixture.path("-").is_file());
}

#[test]
fn a_text_from_a_pipe_calibrates_and_is_refused_where_it_is_read_twice() {
    let fixture = Fixture::new();
    let flags = "-m base.gguf -f <(cat text.txt) -o calib.gguf --ctx 64 --tokens 512";
    let _ = fixture.shell(&format!("statecells-calib {flags}")).ok();
    let _ = fixture.shell("mv calib.gguf piped.gguf; statecells-calib -m base.gguf -f text.txt -o calib.gguf --ctx 64 --tokens 512").ok();
    let tensors = |name: &str| ModelFile::read(&fixture.path(name)).tensors.len();
    assert_eq!(tensors("piped.gguf"), tensors("calib.gguf"));
    let flags = "--base base.gguf --sc coded.gguf --text <(cat text.txt) --outdir out";
    let run = fixture.shell(&format!("statecells-eval {flags}"));
    let says = ["/dev/fd/", "read several times", "write the text to a file"];
    assert_eq!(check::fault(&case("text", &says), run.stderr.trim_end()), None);
    assert!(!fixture.path("out").exists());
}

/// Models whose layers have no FFN that could be coded, where that matters.
#[test]
fn models_without_an_ffn_are_named_and_what_to_give_instead() {
    let fixture = Fixture::new();
    for name in ["Mamba", "RWKV", "T5", "an old mmproj", "a new mmproj", "a vocabulary alone"] {
        let case = hostile::models().into_iter().find(|c| c.name == name).expect("a case");
        std::fs::write(fixture.path("model.gguf"), &case.bytes).unwrap();
        for (program, flags) in &PROGRAMS[..4] {
            let run = fixture.shell(&format!("{program} {}", flags.replace("MODEL", "model.gguf")));
            assert_eq!(check::fault(&case, run.stderr.trim_end()), None, "{program}");
            assert_eq!((run.code, run.stdout.len()), (Some(1), 0), "{program}: {name}");
        }
        let shown = fixture.shell("statecells-inspect model.gguf").ok();
        assert!(shown.text().starts_with("model.gguf: "), "{}", shown.text());
    }
}
