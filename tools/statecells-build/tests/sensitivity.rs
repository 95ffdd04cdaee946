//! `--measure-sensitivity`: every matrix gets a figure that a budget can use, and nothing else is left.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::calibration::{Made, write_calibration};
use common::{Fixture, fails, succeeds};

const MEASURE: &str =
    "-i model.gguf -o s.json --calib calib.gguf --measure-sensitivity text.txt -t 1";

fn fixture() -> Fixture {
    let fixture = Fixture::small();
    write_calibration(&fixture, "calib.gguf", Made::default());
    let words = ["the lamp ", "of a ship ", "goes ", "north; ", "12 ", "birds, ", "no "];
    let text: String = (0..700).map(|i| words[(i * i + i / 5) % words.len()]).collect();
    fs::write(fixture.path("text.txt"), text).unwrap();
    fixture
}

#[test]
fn every_matrix_gets_a_figure_that_a_budget_takes() {
    let fixture = fixture();
    let before = fixture.names();
    let said = common::stderr(&succeeds(&mut fixture.plain(MEASURE)));
    assert!(said.contains("[2/2] layer 1: ") && said.contains("down: "), "{said}");
    let found: BTreeMap<String, f64> = serde_json::from_slice(&fixture.bytes("s.json")).unwrap();
    assert_eq!(found.len(), 6);
    assert!(found.contains_key("blk.1.ffn_down"));
    let mean = found.values().sum::<f64>() / 6.0;
    assert!((mean - 1.0).abs() < 1e-3 && found.values().all(|v| *v >= 0.0), "{found:?}");
    let new: Vec<String> = fixture.names().into_iter().filter(|n| !before.contains(n)).collect();
    assert_eq!(new, ["s.json"]);

    let budget = "-i model.gguf -o out.gguf --bpw 3.4 --sensitivity s.json --calib calib.gguf \
                  --rounds 0 --beam 2 -t 1";
    succeeds(&mut fixture.plain(budget));

    // The same again, whatever the number of threads; an earlier result is not lost by accident.
    let first = fixture.bytes("s.json");
    fails(&mut fixture.plain(MEASURE), 1, &["--measure-sensitivity", "s.json", "--force"]);
    succeeds(&mut fixture.plain(&format!("{MEASURE} --force").replace("-t 1", "-t 2")));
    assert_eq!(fixture.bytes("s.json"), first);
}

#[test]
fn what_cannot_be_measured_is_refused_before_the_work() {
    let fixture = fixture();
    let with = |from: &str, to: &str| fixture.plain(&MEASURE.replace(from, to));
    fails(&mut with("text.txt", "none.txt"), 1, &["none.txt", "check the path"]);
    fails(&mut with("s.json", "text.txt"), 1, &["--measure-sensitivity and -o are the same file"]);
    fails(&mut with("calib.gguf", "model.gguf"), 1, &["--calib", "model.gguf"]);
    fs::write(fixture.path("short.txt"), "a few words").unwrap();
    fails(&mut with("text.txt", "short.txt"), 1, &["short.txt", "give more text"]);
    let names = fixture.names();
    succeeds(&mut fixture.plain(&MEASURE.replace("-o s.json", "--dry-run")));
    assert_eq!(fixture.names(), names);
    let usage = |flags: &str| {
        let output = fixture.plain(&format!("{MEASURE} {flags}")).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}");
    };
    ["--bpw 3", "--resume", "--layers 0", "--tune 3"].into_iter().for_each(usage);
}
