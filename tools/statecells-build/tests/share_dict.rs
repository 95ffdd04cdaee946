//! `--share-dict`: one dictionary for gate and up.

mod common;

use common::calibration::{Made, write_calibration};
use common::{Fixture, data, killed_at, stderr, succeeds};
use fixtures::models::Model;

const BUILD: &str = "-i model.gguf --scheme sections --S 2 --rounds 1 --beam 2 -t 1";

fn build(fixture: &Fixture, output: &str, flags: &str) {
    succeeds(&mut fixture.plain(&format!("{BUILD} -o {output} {flags}")));
}

#[test]
fn gate_and_up_have_one_dictionary_and_down_its_own() {
    let fixture = Fixture::small();
    let made = Made { n_fitted: 360, n_held_out: 40, with_tokens: true, ..Made::default() };
    write_calibration(&fixture, "calib.gguf", made);
    for flags in ["--no-calib", "--calib calib.gguf", "--calib calib.gguf --sequential 1"] {
        build(&fixture, "own.gguf", &format!("{flags} --force"));
        build(&fixture, "shared.gguf", &format!("{flags} --share-dict gate,up --force"));
        let dicts = |file: &str, role: &str| data(&fixture, file, &format!("{role}.dict"));
        let shared = dicts("shared.gguf", "ffn_gate");
        assert_eq!(shared, dicts("shared.gguf", "ffn_up"), "{flags}");
        assert!(shared.len() == 2 && shared[0] != shared[1], "{flags}");
        assert_ne!(shared, dicts("shared.gguf", "ffn_down"), "{flags}");
        assert_ne!(dicts("own.gguf", "ffn_gate"), dicts("own.gguf", "ffn_up"), "{flags}");
    }
}

/// The dictionary of a layer is made anew, as it was.
#[test]
fn a_build_that_was_stopped_between_them_goes_on() {
    let fixture = Fixture::small();
    let flags = "--no-calib --share-dict gate,up";
    build(&fixture, "whole.gguf", flags);
    let line = "blk.0.ffn_gate";
    killed_at(&mut fixture.plain(&format!("{BUILD} -o out.gguf {flags}")), line);
    let other = fixture.plain(&format!("{BUILD} -o out.gguf --no-calib --resume")).output();
    assert!(!other.unwrap().status.success(), "other flags");
    build(&fixture, "out.gguf", &format!("{flags} --resume"));
    assert!(fixture.bytes("out.gguf") == fixture.bytes("whole.gguf"));
}

#[test]
fn what_would_part_the_dictionaries_is_refused() {
    let fixture = Fixture::small();
    for (flags, named) in [
        ("--share-dict gate,up --tune 2", "--tune"),
        ("--share-dict gate,up --tune-ffn 2", "--tune-ffn"),
        ("--share-dict up,down", "gate,up"),
    ] {
        let run = fixture.plain(&format!("{BUILD} -o out.gguf {flags}")).output().unwrap();
        let said = stderr(&run);
        assert_eq!(run.status.code(), Some(2), "{said}");
        assert!(said.contains("--share-dict") && said.contains(named), "{said}");
    }
}

/// Without a gate there is nothing to share.
#[test]
fn a_matrix_that_reads_its_input_alone_is_coded_as_ever() {
    let fixture = Fixture::new(&Model { has_gate: false, ..Model::default() });
    build(&fixture, "own.gguf", "--no-calib");
    build(&fixture, "shared.gguf", "--no-calib --share-dict gate,up");
    for suffix in ["ffn_up.dict", "ffn_up.codes", "ffn_down.codes"] {
        assert_eq!(data(&fixture, "own.gguf", suffix), data(&fixture, "shared.gguf", suffix));
    }
}
