//! Importance matrices as llama-imatrix writes them, in its format of today and in the one before GGUF.

use end_to_end::programs::Run;
use fixtures::models::Model;
use format::{MatrixId, Role};
use ggml::imatrix::Imatrix;
use tempfile::TempDir;

#[test]
fn the_old_format_says_the_same_as_the_new_one() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let model = Model::default();
    model.write(folder.path().join("model.gguf").as_path()).unwrap();
    let words = (0..400).map(|i| ["one", "two", "or so", "many"][i * i % 7 % 4]);
    std::fs::write(path("text.txt"), words.collect::<Vec<_>>().join(" ")).unwrap();
    for (output, format) in [("new.gguf", "gguf"), ("old.dat", "dat")] {
        let (model, text, output) = (path("model.gguf"), path("text.txt"), path(output));
        let flags = ["-m", &model, "-f", &text, "-o", &output, "--output-format", format];
        let _ =
            Run::of("llama-imatrix", flags.iter().chain(&["-c", "64", "--chunks", "5", "-t", "1"]))
                .ok();
    }
    let open = |name: &str| Imatrix::open(&folder.path().join(name)).unwrap();
    let (new, old) = (open("new.gguf"), open("old.dat"));
    assert_eq!(old.datasets(), new.datasets());
    for layer in 0..model.n_layers {
        for role in Role::PLAIN {
            let weight = MatrixId { layer, role }.weight();
            let n = if role == Role::Down { model.n_ff } else { model.n_embd };
            let pairs = [&old, &new].map(|i| i.importance(&weight, n, None).unwrap());
            for (old, new) in pairs[0].iter().zip(&pairs[1]) {
                assert!((old - new).abs() <= 1e-5 * new.abs(), "{weight}: {old} and {new}");
            }
        }
    }
    // A build weighs by either alike.
    let gap = |imatrix: &str| {
        let (model, out, report) = (path("model.gguf"), path("out.gguf"), path("report.json"));
        let imatrix = path(imatrix);
        let flags = ["-i", &model, "-o", &out, "--imatrix", &imatrix, "--report-json", &report];
        let quick =
            ["--S", "4", "--beam", "1", "--rounds", "0", "--layers", "0", "--force", "-t", "1"];
        let _ = Run::of("statecells-build", flags.iter().chain(&quick)).ok();
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        report["totals"]["gap_w"].as_f64().unwrap()
    };
    let (old, new) = (gap("old.dat"), gap("new.gguf"));
    assert!((old / new - 1.0).abs() < 1e-3, "{old} and {new}");
}
