//! Models in several files, cut by llama-gguf-split, through all programs: as good as the same model in one file.

use std::fs;
use std::path::{Path, PathBuf};

use end_to_end::coding::{Coding, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::{Run, assert_refused};
use fixtures::models::Model;
use serde_json::Value;
use tempfile::TempDir;

struct Fixture(TempDir);

impl Fixture {
    /// A folder with `whole.gguf` and a text.
    fn new() -> Self {
        let fixture = Self(TempDir::new().unwrap());
        Model::default().write(&fixture.path("whole.gguf")).unwrap();
        let words = (0..2000).map(|i| ["one", "two", "or so", "many"][i * i % 7 % 4]);
        fs::write(fixture.path("text.txt"), words.collect::<Vec<_>>().join(" ")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Cuts `name` in parts of 7 tensors called after `stem`; the names of the parts.
    fn split(&self, name: &str, stem: &str) -> Vec<String> {
        let (file, stem_path) = (self.path(name), self.path(stem));
        let flags = ["--split", "--split-max-tensors", "7"].map(Path::new);
        let _ = Run::of("llama-gguf-split", flags.into_iter().chain([&*file, &*stem_path])).ok();
        let names = fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with(&format!("{stem}-0")));
        names.sort();
        assert!(names.len() >= 3, "{names:?}");
        names
    }

    /// Runs `program` with `flags`, of which those with a dot are names in the folder.
    fn run(&self, program: &str, flags: &str) -> Run {
        let flag = |word: &str| match word.contains('.') && !word.starts_with('-') {
            true => self.path(word).display().to_string(),
            false => word.to_owned(),
        };
        Run::of(program, flags.split_whitespace().map(flag))
    }

    fn read(&self, name: &str) -> ModelFile {
        ModelFile::read(&self.path(name))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    fn n_bytes(&self, names: &[String]) -> u64 {
        names.iter().map(|name| self.path(name).metadata().unwrap().len()).sum()
    }
}

/// Everything but the record, in which the hash of the input stands.
fn contents(mut file: ModelFile) -> ModelFile {
    for key in [format::keys::RECORD, "calibration.model.sha256"] {
        file.remove_key(key);
    }
    file
}

fn assert_same(a: ModelFile, b: ModelFile) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.metadata, b.metadata);
    let names = |f: &ModelFile| f.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (a, b) in a.tensors.iter().zip(&b.tensors) {
        assert!(a.ty == b.ty && a.dims == b.dims && a.data == b.data, "{}", a.name);
    }
}

const CALIB: &str = "-f text.txt --tokens 2048 --ctx 64 -t 1";
const SECTIONS: &str = "--S 4 --beam 2 --rounds 1 -t 1";

#[test]
fn calibrated_and_built_from_parts_a_file_is_the_same() {
    let fixture = Fixture::new();
    let parts = fixture.split("whole.gguf", "parts");
    for (input, name) in [("whole.gguf", "a"), (&*parts[0], "b")] {
        let flags = format!("-m {input} -o calib-{name}.gguf {CALIB}");
        let _ = fixture.run("statecells-calib", &flags).ok();
        let flags = format!(
            "-i {input} -o coded-{name}.gguf --calib calib-{name}.gguf {SECTIONS} --report-json {name}.json"
        );
        let _ = fixture.run("statecells-build", &format!("{flags} --dry-run")).ok();
        let _ = fixture.run("statecells-build", &flags).ok();
        let flags = format!("-i {input} -o delta-{name}.gguf --base none --delta-k 4 -t 1");
        let _ = fixture.run("seeddelta-build", &flags).ok();
    }
    assert_same(fixture.read("calib-a.gguf"), fixture.read("calib-b.gguf"));
    for name in ["coded", "delta"] {
        let (a, b) = (format!("{name}-a.gguf"), format!("{name}-b.gguf"));
        let built = fixture.read(&b);
        assert!(built.metadata.iter().all(|(key, _)| !key.starts_with("split.")));
        assert_same(fixture.read(&a), built);
    }
    let input = &fixture.json("b.json")["input"];
    assert_eq!(input["bytes"].as_u64(), Some(fixture.n_bytes(&parts)));
    // A calibration belongs to the files that it was made with, to every one of them.
    let other =
        fixture.run("statecells-build", &format!("-i {} -o o.gguf --calib calib-a.gguf", parts[0]));
    assert_refused(&other, &["calib-a.gguf", "SHA-256"]);
    let last = fixture.path(parts.last().unwrap());
    let mut bytes = fs::read(&last).unwrap();
    let at = bytes.len() - 33;
    bytes[at] ^= 1;
    fs::write(last, bytes).unwrap();
    let again = format!("-i {} -o o.gguf --calib calib-b.gguf {SECTIONS}", parts[0]);
    assert_refused(&fixture.run("statecells-build", &again), &["calib-b.gguf", "SHA-256"]);
    let grown = format!("-i {} -o coded-b.gguf --calib calib-b.gguf {SECTIONS} --resume", parts[0]);
    assert_refused(&fixture.run("statecells-build", &grown), &["SHA-256"]);
}

#[test]
fn a_part_that_is_missing_or_not_the_first_is_named_by_every_program() {
    let fixture = Fixture::new();
    let parts = fixture.split("whole.gguf", "parts");
    let refused = |input: &str, says: &[&str]| {
        for (program, flags) in [
            ("statecells-build", format!("-i {input} -o out.gguf")),
            ("statecells-build", format!("-i {input} --dry-run")),
            ("seeddelta-build", format!("-i {input} -o out.gguf --base none --delta-k 4")),
            ("statecells-calib", format!("-m {input} -o out.gguf -f text.txt")),
            ("statecells-inspect", input.to_owned()),
            (
                "statecells-eval",
                format!("--base {input} --sc {input} --text text.txt --outdir out.d"),
            ),
        ] {
            let run = fixture.run(program, &flags);
            assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
            let _ = run.line(says);
            assert!(!fixture.path("out.gguf").exists(), "{program}");
        }
    };
    refused(&parts[1], &["part 2 of", "give the first one", &parts[0]]);
    fs::rename(fixture.path(&parts[2]), fixture.path("away.gguf")).unwrap();
    refused(&parts[0], &[&format!("{}: is not there", parts[2]), "part 3 of", &parts[0]]);
    fs::copy(fixture.path(&parts[1]), fixture.path(&parts[2])).unwrap();
    refused(&parts[0], &[&parts[2], "is part 2", "mixed up"]);
}

#[test]
fn no_part_is_ever_written_over() {
    let fixture = Fixture::new();
    let parts = fixture.split("whole.gguf", "parts");
    for part in &parts {
        for (program, flags) in [
            ("statecells-build", format!("-i {} -o {part} --force", parts[0])),
            (
                "seeddelta-build",
                format!("-i {} -o {part} --force --base none --delta-k 4", parts[0]),
            ),
            ("statecells-calib", format!("-m {} -o {part} --force {CALIB}", parts[0])),
        ] {
            assert_refused(&fixture.run(program, &flags), &[part, "same file"]);
        }
    }
    // A coded file in parts cannot grow: only its first part would be replaced.
    let build = format!("-i whole.gguf --no-calib {SECTIONS}");
    let _ = fixture.run("statecells-build", &format!("{build} -o coded.gguf --layers 0")).ok();
    let coded = fixture.split("coded.gguf", "coded");
    let grown = fixture.run("statecells-build", &format!("{build} -o {} --resume", coded[0]));
    assert_refused(&grown, &[&coded[0], "llama-gguf-split --merge"]);
}

#[test]
fn coded_files_run_from_parts_and_are_seen_as_a_whole() {
    let fixture = Fixture::new();
    for (name, flag, coding) in [
        ("sections", "--statecells", Coding::sections(0.01)),
        ("global", "--statecells", Coding::default()),
        ("delta", "--seeddelta", Coding::seeddelta("lowrank:5", true)),
    ] {
        let whole = format!("{name}.gguf");
        Twins::of(&fixture.read("whole.gguf"), &coding).coded.write(&fixture.path(&whole));
        let parts = fixture.split(&whole, name);
        for mapped in ["", "--load-mode none"] {
            let flags =
                format!("-p abc -no-cnv -n 24 --temp 0 -c 64 -t 1 --no-warmup {flag} {mapped}");
            let tokens = |input: &str| {
                let run = fixture.run("llama-completion", &format!("-m {input} {flags}")).ok();
                let _ = run.line(&["statecells: 6 FFN tensors run from codes"]);
                run.stdout
            };
            assert_eq!(tokens(&parts[0]), tokens(&whole), "{name} {mapped}");
        }
        let inspect = |input: &str| fixture.run("statecells-inspect", input).ok().text();
        let of = |text: String| {
            text.split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()
        };
        let ((_, table), (headline, other)) = (of(inspect(&whole)), of(inspect(&parts[0])));
        assert_eq!(table, other, "{name}");
        assert!(
            headline.ends_with("format 1")
                && headline.contains(&format!(" bytes in {} files", parts.len())),
            "{headline}"
        );
    }
}

#[test]
fn an_evaluation_counts_all_parts() {
    let fixture = Fixture::new();
    let _ = fixture
        .run("statecells-build", &format!("-i whole.gguf -o coded.gguf --no-calib {SECTIONS}"))
        .ok();
    let base = fixture.split("whole.gguf", "base");
    let coded = fixture.split("coded.gguf", "coded");
    let evaluate = |base: &str, coded: &str, out: &str| {
        let run = fixture.run(
            "statecells-eval",
            &format!(
                "--base {base} --sc {coded} --text text.txt --outdir {out}.d --ctx 64 --chunks 12 -t 1 --against Q5_K_M --skip speed,qa"
            ),
        );
        assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
        fixture.json(&format!("{out}.d/report.json"))
    };
    let (whole, parts) =
        (evaluate("whole.gguf", "coded.gguf", "a"), evaluate(&base[0], &coded[0], "b"));
    let size = |report: &Value, key: &str, what: &str| {
        let files = report["files"].as_array().unwrap();
        let file = files.iter().find(|f| f["key"] == key).unwrap();
        file["sizes"]["value"][what].as_u64().unwrap()
    };
    for key in ["base", "statecells", "ffn-Q5_K_M"] {
        for what in ["ffn_bytes", "tensor_bytes", "ffn_weights"] {
            assert_eq!(size(&parts, key, what), size(&whole, key, what), "{key} {what}");
        }
    }
    assert_eq!(size(&parts, "base", "file_bytes"), fixture.n_bytes(&base));
    assert_eq!(size(&parts, "statecells", "file_bytes"), fixture.n_bytes(&coded));
    assert_eq!(parts["statecells"]["mem_saved_gb"], whole["statecells"]["mem_saved_gb"]);
    let perplexity = |report: &Value| report["files"][1]["perplexity"]["value"]["estimate"].clone();
    assert_eq!(perplexity(&parts), perplexity(&whole));
    // What is kept is kept under the hash of all parts.
    let last = fixture.path(coded.last().unwrap());
    let mut bytes = fs::read(&last).unwrap();
    let at = bytes.len() - 34;
    bytes[at] ^= 1;
    fs::write(last, bytes).unwrap();
    let run = fixture.run(
        "statecells-eval",
        &format!(
            "--base {} --sc {} --text text.txt --outdir b.d --ctx 64 --chunks 12 -t 1 --against Q5_K_M --skip speed,qa --resume",
            base[0], coded[0]
        ),
    );
    assert!(matches!(run.code, Some(0 | 3)), "{}", run.stderr);
    let report = fixture.json("b.d/report.json");
    assert_ne!(report["files"][1]["sha256"], parts["files"][1]["sha256"]);
    assert_eq!(report["files"][1]["perplexity"]["reused"], false);
}
