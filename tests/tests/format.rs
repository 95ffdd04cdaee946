//! docs/format.md decodes what the codec writes.

use std::path::Path;
use std::process::Command;

use end_to_end::coding::{Coding, Method, Twins};
use end_to_end::model_file::ModelFile;
use end_to_end::programs::python;
use fixtures::models::Model;
use tempfile::TempDir;

/// Whether the Python of the page makes of `coded` what the codec does.
fn agrees(python: &Path, folder: &Path, twins: &Twins) -> bool {
    let (coded, dense) = (folder.join("coded.gguf"), folder.join("dense.gguf"));
    twins.coded.write(&coded);
    twins.dense.write(&dense);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/format_page.py");
    let output = Command::new(python).arg(script).args([coded, dense]).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}{err}");
    assert!(err.is_empty(), "{err}");
    output.status.success()
}

#[test]
fn the_page_decodes_what_the_codec_decodes() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("base.gguf");
    Model { n_embd: 52, n_ff: 108, n_heads: 2, ..Model::default() }.write(&path).unwrap();
    let base = ModelFile::read(&path);
    for coding in Coding::all() {
        let mut twins = Twins::of(&base, &coding);
        assert!(agrees(&python, folder.path(), &twins), "{:?}", coding.method);
        // and a wrong code is seen
        let changed = match coding.method {
            Method::SeedDelta(_) => "blk.1.ffn_down.delta_val",
            _ => "blk.1.ffn_down.codes",
        };
        let codes = twins.coded.tensor_mut(changed);
        codes.data[0] = codes.data[0].wrapping_neg();
        codes.data[1] =
            if changed.ends_with("codes") { !codes.data[1] } else { codes.data[1] ^ 0x80 };
        assert!(!agrees(&python, folder.path(), &twins), "{:?}: blind", coding.method);
    }
}
