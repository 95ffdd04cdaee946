//! Every bad input gives one line that names what is wrong and the way out, and leaves nothing behind.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Fixture, fails, stderr, succeeds};
use fixtures::models::{Model, write_imatrix};
use format::{MatrixId, Role};
use ggml::Type;
use ggml::gguf::{GgufWriter, WriteError};

const BUILD: &str = "-i model.gguf -o out.gguf";

/// A fixture whose model has changed metadata.
fn with_metadata(change: impl FnOnce(&mut GgufWriter) -> Result<(), WriteError>) -> Fixture {
    let fixture = Fixture::small();
    Model::default().write_with(&fixture.path("model.gguf"), change, |_, _| {}).unwrap();
    fixture
}

/// A GGUF with llama's architecture and tensors of zeros.
fn write_tensors(fixture: &Fixture, tensors: &[(&str, Type, &[usize])]) {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama").unwrap();
    for (name, ty, dims) in tensors {
        writer.add_tensor(name, *ty, dims).unwrap();
    }
    let out = fs::File::create(fixture.path("model.gguf")).unwrap();
    let zeros = |i: usize| vec![0; tensors[i].1.tensor_bytes(tensors[i].2).unwrap()];
    writer.write(out, |i, out| out.write_all(&zeros(i))).unwrap();
}

/// The build must be refused and leave only the model.
fn refused(fixture: &Fixture, flags: &str, parts: &[&str]) {
    fails(&mut fixture.quick(&format!("{BUILD} {flags}")), 1, parts);
    assert_eq!(fixture.names(), ["model.gguf"], "{flags}");
}

#[test]
fn rejects_what_is_no_gguf() {
    let fixture = Fixture::small();
    for content in [&b""[..], b"GG", b"no model at all, but long enough to be read as a header"] {
        fs::write(fixture.path("model.gguf"), content).unwrap();
        refused(&fixture, "", &["error: model.gguf", "not a GGUF file", "complete GGUF"]);
    }
    fails(&mut fixture.quick("-i . -o out.gguf"), 1, &["error: .: "]);
    fails(
        &mut fixture.quick("-i missing.gguf -o out.gguf"),
        1,
        &["missing.gguf", "check the path"],
    );
}

#[test]
fn rejects_a_file_truncated_at_any_byte() {
    let fixture = Fixture::new(&Model { n_layers: 1, ..Model::default() });
    let whole = fixture.bytes("model.gguf");
    let metadata = whole.len() - whole.len() / 2;
    let in_metadata = (1..metadata).step_by(metadata / 40);
    let in_data = (metadata..whole.len()).step_by(whole.len() / 20);
    for n in (0..24).chain(in_metadata).chain(in_data).chain([whole.len() - 1]) {
        fs::write(fixture.path("model.gguf"), &whole[..n]).unwrap();
        refused(&fixture, "", &["error: model.gguf"]);
    }
}

#[test]
fn rejects_an_output_that_is_an_input() {
    let fixture = Fixture::small();
    let before = fixture.bytes("model.gguf");
    std::os::unix::fs::symlink("model.gguf", fixture.path("soft.gguf")).unwrap();
    fs::hard_link(fixture.path("model.gguf"), fixture.path("hard.gguf")).unwrap();
    for name in ["model.gguf", "./model.gguf", "soft.gguf", "hard.gguf"] {
        for mode in ["", "--force", "--resume"] {
            let flags = format!("-i model.gguf -o {name} {mode}");
            fails(&mut fixture.quick(&flags), 1, &["-i and -o are the same file"]);
        }
    }
    fails(
        &mut fixture.quick("-i model.gguf -o out.gguf --report-json hard.gguf"),
        1,
        &["-i and --report-json are the same file"],
    );
    fails(
        &mut fixture.quick("-i model.gguf -o out.gguf --report-json out.gguf"),
        1,
        &["-o and --report-json are the same file"],
    );
    assert_eq!(fixture.bytes("model.gguf"), before);
}

#[test]
fn rejects_an_existing_output() {
    let fixture = Fixture::small();
    fs::write(fixture.path("out.gguf"), "precious").unwrap();
    fails(&mut fixture.quick(BUILD), 1, &["out.gguf: already exists", "--resume", "--force"]);
    fails(&mut fixture.quick(&format!("{BUILD} --resume")), 1, &["out.gguf"]);
    assert_eq!(fixture.bytes("out.gguf"), b"precious");
    succeeds(&mut fixture.quick(&format!("{BUILD} --force")));
    // A model that no build has made cannot be grown.
    fs::copy(fixture.path("model.gguf"), fixture.path("out.gguf")).unwrap();
    fails(&mut fixture.quick(&format!("{BUILD} --resume")), 1, &["out.gguf", "not made by this"]);
}

#[test]
fn rejects_sizes_that_do_not_fit() {
    let fixture = Fixture::small();
    for (flags, parts) in [
        ("--dict-M 32768", ["--dict-M", "32767"]),
        ("--dict-M-down 0", ["--dict-M", "blk.0.ffn_down.weight"]),
        ("--dict-k 25", ["--dict-k", "M = 24"]),
        ("--dict-k-up 0", ["--dict-k", "blk.0.ffn_up.weight"]),
        ("--dict-max-samples 0", ["--dict-max-samples", "at least 1"]),
        ("--layers 2", ["--layers 2", "numbered 0 to 1"]),
        ("--layers 0,1-7", ["--layers 0,1-7", "2 layers"]),
    ] {
        let words = format!("{BUILD} --row-scale {flags}");
        let mut command = fixture.plain(&words);
        if !flags.contains("--dict-M 3") {
            command.args(["--dict-M", "24"]);
        }
        if !flags.contains("--dict-k 2") {
            command.args(["--dict-k", "4"]);
        }
        fails(&mut command, 1, &parts);
        assert_eq!(fixture.names(), ["model.gguf"]);
    }
}

#[test]
fn rejects_targets_that_the_model_lacks() {
    let fixture = Fixture::new(&Model { has_gate: false, ..Model::default() });
    refused(&fixture, "--targets gate,up", &["--targets", "no ffn_gate"]);
}

#[test]
fn rejects_weights_that_are_not_finite() {
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let fixture = Fixture::small();
        let damage = |name: &str, weights: &mut [f32]| {
            if name == "blk.1.ffn_down.weight" {
                weights[1000] = value;
            }
        };
        Model::default().write_with(&fixture.path("model.gguf"), |_| Ok(()), damage).unwrap();
        let parts = ["blk.1.ffn_down.weight", "weight 1000", "row 5, column 40", text];
        refused(&fixture, "", &parts);
        // What is not selected does not matter.
        fixture.build("out.gguf", "--targets gate,up");
    }
}

#[test]
fn rejects_models_it_cannot_code() {
    let fixture = with_metadata(|w| w.set("llama.expert_count", 8u32));
    refused(&fixture, "", &["model.gguf", "mixture of experts", "llama.expert_count = 8"]);
    let fixture = with_metadata(|w| w.set("split.count", 3u16));
    refused(&fixture, "", &["model.gguf", "a part of a model", "split.no"]);
    let fixture = with_metadata(|w| {
        w.set("split.no", 0u16)?;
        w.set("split.count", 3u16)?;
        w.set("split.tensors.count", 60i32)
    });
    refused(&fixture, "", &["model.gguf", "first of 3 parts", "NAME-00001-of-00003.gguf"]);
    let fixture = with_metadata(|w| w.set("split.count", 1u16));
    fixture.build("out.gguf", "");
    let fixture = with_metadata(|w| w.set("general.type", "adapter"));
    refused(&fixture, "", &["model.gguf", "'adapter'"]);
    let fixture = with_metadata(|w| w.set("general.architecture", "jina-bert-v2"));
    refused(&fixture, "", &["model.gguf", "'jina-bert-v2'"]);
    let fixture = with_metadata(|w| {
        w.remove("general.architecture");
        Ok(())
    });
    refused(&fixture, "", &["model.gguf", "general.architecture"]);
}

#[test]
fn rejects_unknown_layouts() {
    let fixture = Fixture::small();
    let (up, down) = ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight");
    let matrix = [8, 8].as_slice();
    for (tensors, parts) in [
        (vec![("token_embd.weight", Type::F32, matrix)], ["blk.N.ffn_up.weight", "layout"]),
        (vec![(up, Type::F32, matrix)], ["no tensor blk.0.ffn_down.weight", "layout"]),
        (vec![(down, Type::F32, matrix)], ["no tensor blk.0.ffn_up.weight", "layout"]),
        (
            vec![(up, Type::F32, [8, 8, 2].as_slice()), (down, Type::F32, matrix)],
            [up, "only matrices"],
        ),
        (vec![(up, Type::I32, matrix), (down, Type::F32, matrix)], [up, "i32"]),
        (
            vec![("blk.0.ffn_up_exps.weight", Type::F32, [8, 8, 2].as_slice())],
            ["blk.0.ffn_up_exps.weight", "experts"],
        ),
        (vec![("blk.0.ffn_up.0.weight", Type::F32, matrix)], ["ffn_up.0.weight", "experts"]),
    ] {
        write_tensors(&fixture, &tensors);
        let mut all = vec!["model.gguf"];
        all.extend(parts);
        refused(&fixture, "", &all);
    }
}

#[test]
fn rejects_a_file_that_is_coded_already() {
    let fixture = Fixture::small();
    fixture.build("coded.gguf", "");
    let flags = "-i coded.gguf -o out.gguf";
    fails(
        &mut fixture.quick(flags),
        1,
        &["coded.gguf", "coded tensors already", "original", "--resume"],
    );
    assert!(!fixture.path("out.gguf").exists());
}

fn imatrix_entries(n_layers: usize, d_in: usize) -> Vec<(String, Vec<f32>)> {
    let tensors = (0..n_layers).flat_map(|layer| Role::PLAIN.map(|role| MatrixId { layer, role }));
    let d_in = |t: &MatrixId| if t.role == Role::Down { 3 * d_in } else { d_in };
    tensors.map(|t| (t.weight(), vec![1.0; d_in(&t)])).collect()
}

#[test]
fn rejects_an_imatrix_that_does_not_fit() {
    let fixture = Fixture::small();
    let imatrix = fixture.path("imatrix.gguf");
    let flags = format!("{BUILD} --imatrix imatrix.gguf");
    let refuse = |parts: &[&str]| {
        let mut all = vec!["--imatrix", "imatrix.gguf"];
        all.extend(parts);
        fails(&mut fixture.quick(&flags), 1, &all);
        assert!(!fixture.path("out.gguf").exists());
    };
    refuse(&["No such file"]);
    fs::write(&imatrix, "old format").unwrap();
    refuse(&["not a GGUF", "llama-imatrix"]);
    Model::default().write(&imatrix).unwrap();
    refuse(&["no importance matrix"]);
    write_imatrix(&imatrix, &imatrix_entries(1, 64), 9.0).unwrap();
    refuse(&["no entry for 'blk.1.ffn_gate.weight'"]);
    write_imatrix(&imatrix, &imatrix_entries(2, 32), 9.0).unwrap();
    refuse(&["blk.0.ffn_gate.weight", "64 inputs"]);
    write_imatrix(&imatrix, &imatrix_entries(2, 64), 0.0).unwrap();
    refuse(&["blk.0.ffn_gate.weight", "count of 0"]);
    let mut entries = imatrix_entries(2, 64);
    entries[1].1[7] = f32::NAN;
    write_imatrix(&imatrix, &entries, 9.0).unwrap();
    refuse(&["blk.0.ffn_up.weight", "input 7"]);
    let mut entries = imatrix_entries(2, 64);
    entries[2].1.fill(0.0);
    write_imatrix(&imatrix, &entries, 9.0).unwrap();
    refuse(&["blk.0.ffn_down.weight", "all mean squares are 0"]);
}

#[test]
fn rejects_outputs_that_cannot_be_written() {
    let fixture = Fixture::small();
    fs::create_dir(fixture.path("folder")).unwrap();
    fails(&mut fixture.quick("-i model.gguf -o folder --force"), 1, &["folder", "name a file"]);
    fails(&mut fixture.quick("-i model.gguf -o none/out.gguf"), 1, &["none", "check the path"]);
    fails(
        &mut fixture.quick("-i model.gguf -o /dev/null --force"),
        1,
        &["/dev/null", "no regular file"],
    );
    let report = format!("{BUILD} --report-json none/r.json");
    fails(&mut fixture.quick(&report), 1, &["none", "check the path"]);
    fs::remove_dir(fixture.path("folder")).unwrap();
    assert_eq!(fixture.names(), ["model.gguf"]);
}

/// Root may write anywhere, so the program runs as another user where the tests run as root.
#[test]
fn rejects_a_read_only_folder() {
    use std::os::unix::process::CommandExt;
    let fixture = Fixture::small();
    let program = fixture.path("program");
    // By another process: a file that this one has open for writing may be inherited by a child of another
    // test, and then cannot be run.
    let original = assert_cmd::cargo::cargo_bin!("statecells-build");
    assert!(Command::new("cp").arg(original).arg(&program).status().unwrap().success());
    for path in [fixture.path("model.gguf"), fixture.dir().to_owned()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let mut command = Command::new(&program);
    command.current_dir(fixture.dir()).args(BUILD.split_whitespace());
    if fs::write(fixture.path("probe"), "").is_ok() {
        fs::remove_file(fixture.path("probe")).unwrap();
        command.uid(65534).gid(65534);
    }
    fails(
        &mut command,
        1,
        &["error: .: cannot write in this folder", "Permission denied", "choose"],
    );
    fs::set_permissions(fixture.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fixture.names(), ["model.gguf", "program"]);
}

/// A limit on the size of files fails writes as a full disk does, without needing one; so low that the output cannot fit by
/// its tensors alone, it is known at the start.
fn with_file_limit(fixture: &Fixture, kib: u64, flags: &str) -> Command {
    let program = assert_cmd::cargo::cargo_bin!("statecells-build");
    let mut command = Command::new("bash");
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
    command.current_dir(fixture.dir()).args(["-c", &script]).arg(program);
    command.args(flags.split_whitespace()).arg("--row-scale").args(common::QUICK).args(["-t", "1"]);
    command
}

#[test]
fn a_disk_that_fills_up_gives_one_line_and_can_be_resumed() {
    let fixture = Fixture::small();
    succeeds(&mut fixture.quick("-i model.gguf -o expected.gguf"));
    // Nothing fits: no trace is left.
    let output = with_file_limit(&fixture, 2, BUILD).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("ulimit -f") && text.lines().count() == 1, "{text}");
    assert_eq!(fixture.names(), ["expected.gguf", "model.gguf"]);
    // The output alone does not fit, by less than a KiB: finished tensors stay.
    let kib = (fixture.bytes("expected.gguf").len() as u64 - 1) / 1024;
    let output = with_file_limit(&fixture, kib, BUILD).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.contains("File too large") && last.contains("the same command with --resume goes on"),
        "{text}"
    );
    assert!(!fixture.path("out.gguf").exists());
    assert!(!fixture.path("out.gguf.statecells-work/output.part").exists());
    succeeds(&mut fixture.quick(&format!("{BUILD} --resume")));
    assert_eq!(fixture.bytes("out.gguf"), fixture.bytes("expected.gguf"));
}

/// Needs the right to mount; elsewhere the limit above stands for it.
#[test]
fn a_disk_without_room_is_refused_before_the_work() {
    let fixture = Fixture::small();
    fs::create_dir(fixture.path("disk")).unwrap();
    let script = "mount -t tmpfs -o size=256k none disk 2>/dev/null || exit 77; exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-rm", "bash", "-c", script]);
    command.arg(assert_cmd::cargo::cargo_bin!("statecells-build")).current_dir(fixture.dir());
    command.args(
        "-i model.gguf -o disk/out.gguf --row-scale --dict-M 24 --dict-k 4".split_whitespace(),
    );
    match command.output() {
        Ok(output) if output.status.code() == Some(1) && stderr(&output).contains("statecells") => {
            let text = stderr(&output);
            assert!(text.contains("disk: needs about") && text.contains("are free"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        _ => println!("skipped: no right to mount a small disk here"),
    }
}

/// Starts a long build, waits for its first checkpoint, lets `change` act and gives the last line.
fn changed_under_way(change: impl FnOnce(&Fixture)) -> String {
    let fixture = Fixture::new(&Model { n_layers: 12, ..Model::default() });
    let flags = format!("{BUILD} --encoder omp");
    let mut command = fixture.quick(&flags);
    command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let child = command.spawn().unwrap();
    let start = Instant::now();
    while !fixture.path("out.gguf.statecells-work/blk.0.ffn_gate.tensor").exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    change(&fixture);
    let output = child.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!fixture.path("out.gguf").exists());
    text.lines().last().unwrap().to_owned()
}

#[test]
fn a_source_that_changes_while_being_read_is_refused() {
    let line = changed_under_way(|fixture| {
        let at = fixture.bytes("model.gguf").len() - 100;
        let mut file = fs::OpenOptions::new().write(true).open(fixture.path("model.gguf")).unwrap();
        use std::io::{Seek, SeekFrom, Write};
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(b"changed").unwrap();
    });
    assert!(line.contains("model.gguf: changed while it was being read"), "{line}");
}

#[test]
fn a_source_that_is_cut_while_being_read_is_refused() {
    let line = changed_under_way(|fixture| {
        let file = fs::OpenOptions::new().write(true).open(fixture.path("model.gguf")).unwrap();
        file.set_len(4096).unwrap();
    });
    assert!(line.contains("model.gguf: changed while it was being read"), "{line}");
}
