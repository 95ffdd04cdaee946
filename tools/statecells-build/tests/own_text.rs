//! Builds that make their calibration themselves: of a text that the model writes, or of one that is given.

mod common;

use std::fs;

use calibration::Calibration;
use common::{Fixture, fails, stderr, stdout, succeeds};
use fixtures::models::Model;
use ggml::gguf::{GgufFile, GgufWriter};

/// Coarse codes and the least text.
const BUILD: &str = "-i model.gguf --S 2 --rounds 1 --beam 2 -t 1";
/// Eight contexts, the fewest there can be.
const TOKENS: &str = "--tokens 512";

/// A model for short contexts, and a text.
fn fixture() -> Fixture {
    let fixture = Fixture::small();
    let short = |writer: &mut GgufWriter| writer.set("llama.context_length", 64u32);
    Model::default().write_with(&fixture.path("model.gguf"), short, |_, _| {}).unwrap();
    let line = |i: usize| format!("{} of {}\n", i * i * 7919, i * 104_729);
    fs::write(fixture.path("text.txt"), (0..600).map(line).collect::<String>()).unwrap();
    fixture
}

fn build(fixture: &Fixture, flags: &str) -> String {
    stderr(&succeeds(&mut fixture.plain(&format!("{BUILD} {flags}"))))
}

fn calibration(fixture: &Fixture, name: &str) -> Calibration {
    Calibration::open(&fixture.path(name)).unwrap()
}

/// Names and data of all tensors.
fn tensors(fixture: &Fixture, name: &str) -> Vec<(String, Vec<u8>)> {
    let file = GgufFile::open(&fixture.path(name)).unwrap();
    file.tensors().iter().map(|t| (t.name().to_owned(), file.data(t).to_vec())).collect()
}

#[test]
fn without_a_text_the_model_writes_one() {
    let fixture = fixture();
    let said = build(&fixture, &format!("-o out.gguf {TOKENS}"));
    assert!(said.contains("of its own text") && said.contains("out.calib.gguf"), "{said}");
    assert!(said.contains("before blk.1"), "later layers are fitted to what they will see: {said}");
    assert_eq!(fixture.names(), ["model.gguf", "out.calib.gguf", "out.gguf", "text.txt"]);
    let made = calibration(&fixture, "out.calib.gguf");
    let found = made.provenance();
    assert_eq!(
        (&*found.texts[0].name, found.tokens.len(), made.has_inputs()),
        ("own text", 512, false)
    );
    // The same on two threads.
    let two = format!("-o two.gguf {TOKENS}");
    succeeds(&mut fixture.plain(&format!("{BUILD} {two}").replace("-t 1", "-t 2")));
    assert!(fixture.bytes("two.calib.gguf") == fixture.bytes("out.calib.gguf"));
    assert!(fixture.bytes("two.gguf") == fixture.bytes("out.gguf"));
    // The next build has no need to write it again, another seed does.
    let again = build(&fixture, &format!("-o out.gguf {TOKENS} --force --outliers 0.01"));
    assert!(!again.contains("of its own text"), "{again}");
    let other = build(&fixture, &format!("-o out.gguf {TOKENS} --force --seed 7"));
    assert!(other.contains("of its own text"), "{other}");
    assert!(fixture.bytes("out.calib.gguf") != fixture.bytes("two.calib.gguf"));
}

#[test]
fn a_killed_text_goes_on_where_it_was() {
    let fixture = fixture();
    let flags = "-o out.gguf --tokens 4096 --layers 0";
    build(&fixture, flags);
    let whole = (fixture.bytes("out.gguf"), fixture.bytes("out.calib.gguf"));
    // What a kill after the first 32 contexts leaves.
    build(&fixture, "-o part.gguf --tokens 2048 --layers 0");
    for name in ["out.gguf", "out.calib.gguf"] {
        fs::remove_file(fixture.path(name)).unwrap();
    }
    fs::rename(fixture.path("part.calib.gguf"), fixture.path("out.calib.gguf.own-text")).unwrap();
    let said = build(&fixture, flags);
    assert!(said.contains("wrote 64 of 64") && !said.contains("wrote 32 of 64"), "{said}");
    assert!((fixture.bytes("out.gguf"), fixture.bytes("out.calib.gguf")) == whole);
    assert!(!fixture.path("out.calib.gguf.own-text").exists());
}

#[test]
fn a_given_text_does_as_its_calibration_would() {
    let fixture = fixture();
    let text = format!("-f text.txt {TOKENS}");
    build(&fixture, &format!("-o out.gguf {text}"));
    build(&fixture, "-o same.gguf --calib out.calib.gguf --sequential 1");
    assert!(tensors(&fixture, "out.gguf") == tensors(&fixture, "same.gguf"));
    // Without --sequential the model is run on the text at the start.
    build(&fixture, &format!("-o plain.gguf {text} --sequential 0"));
    assert!(calibration(&fixture, "plain.calib.gguf").has_inputs());
    build(&fixture, "-o same.gguf --calib plain.calib.gguf --force");
    assert!(tensors(&fixture, "plain.gguf") == tensors(&fixture, "same.gguf"));
    assert!(tensors(&fixture, "plain.gguf") != tensors(&fixture, "out.gguf"));
    // A budget is shared out by what the model sees.
    let budget = format!("{BUILD} -o budget.gguf {text}").replace("--S 2", "--bpw 3");
    succeeds(&mut fixture.plain(&budget));
    assert!(calibration(&fixture, "budget.calib.gguf").has_inputs());
    // Other schemes weigh inputs, and do so only if a text is given.
    build(&fixture, &format!("-o signs.gguf {text} --row-scale"));
    build(&fixture, "-o signs2.gguf --row-scale");
    assert!(
        fixture.path("signs.calib.gguf").exists() && !fixture.path("signs2.calib.gguf").exists()
    );
}

#[test]
fn a_build_goes_on_with_its_calibration_or_an_equal_one() {
    let fixture = fixture();
    build(&fixture, &format!("-o whole.gguf {TOKENS}"));
    build(&fixture, &format!("-o out.gguf {TOKENS} --layers 0"));
    fs::remove_file(fixture.path("out.calib.gguf")).unwrap();
    build(&fixture, &format!("-o out.gguf {TOKENS} --resume"));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("whole.gguf"));
    fs::remove_file(fixture.path("out.calib.gguf")).unwrap();
    let other = format!("{BUILD} -o out.gguf --tokens 576 --resume");
    let output = fixture.plain(&other).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("out.calib.gguf") && last.contains("fitted to"), "{text}");
}

#[test]
fn nothing_of_the_user_is_replaced_and_what_cannot_be_is_refused_at_the_start() {
    let fixture = fixture();
    fs::write(fixture.path("out.calib.gguf"), "precious").unwrap();
    let command = format!("{BUILD} -o out.gguf {TOKENS}");
    for dry in ["", "--dry-run"] {
        fails(
            &mut fixture.plain(&format!("{command} {dry}")),
            1,
            &["out.calib.gguf", "--calib", "--force"],
        );
    }
    assert_eq!(fixture.bytes("out.calib.gguf"), b"precious");
    build(&fixture, &format!("-o out.gguf {TOKENS} --force"));
    assert!(calibration(&fixture, "out.calib.gguf").provenance().tokens.len() == 512);
    for (flags, says) in
        [("-f none.txt", "none.txt"), ("-f model.gguf", "UTF-8"), ("--tokens 100", "--tokens 100")]
    {
        for dry in ["", "--dry-run"] {
            let command = format!("{BUILD} -o new.gguf {flags} {dry}");
            fails(&mut fixture.plain(&command), 1, &[says]);
        }
    }
    let both = fixture.plain(&format!("{command} --calib out.calib.gguf")).output().unwrap();
    assert_eq!(both.status.code(), Some(2));
    let dry = stdout(&succeeds(&mut fixture.plain(&format!("{BUILD} {TOKENS} --dry-run"))));
    assert!(dry.contains("512 tokens that the model writes itself"), "{dry}");
    build(&fixture, "-o plain.gguf --no-calib");
    assert!(!fixture.path("plain.calib.gguf").exists() && !fixture.path("new.gguf").exists());
}
