//! Writes the whole corpus to a folder: `cargo run -p hostile --example seeds -- FOLDER`.
//!
//! One folder per kind of file. Bad files are named after what is wrong, sound ones start with `good`.

use std::error::Error;
use std::fs;
use std::path::Path;

use hostile::{Case, good};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("name a folder")?;
    let folder = Path::new(&folder);
    let write = |kind: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        fs::create_dir_all(folder.join(kind))?;
        fs::write(folder.join(kind).join(name.replace(['/', ' '], "_")), bytes)
    };
    write("gguf", "good_model", &good::model().bytes())?;
    write("gguf", "good_coded", &good::coded().bytes())?;
    write("gguf", "good_seeddelta", &good::seeddelta().bytes())?;
    write("imatrix", "good", &good::imatrix().bytes())?;
    write("imatrix", "good_old", &good::old_imatrix())?;
    write("calibration", "good", &good::calibration().bytes())?;
    write("policy", "good_policy", good::POLICY.as_bytes())?;
    write("policy", "good_sensitivity", good::SENSITIVITY.as_bytes())?;
    let kinds: [(&str, Vec<Case>); 12] = [
        ("gguf", hostile::structure()),
        ("gguf", hostile::truncated()),
        ("gguf", hostile::foreign()),
        ("gguf", hostile::models()),
        ("gguf", hostile::coded()),
        ("gguf", hostile::strays()),
        ("gguf", hostile::misplaced()),
        ("imatrix", hostile::imatrices()),
        ("imatrix", hostile::old_imatrices()),
        ("calibration", hostile::calibrations()),
        ("policy", hostile::policies()),
        ("policy", hostile::sensitivities()),
    ];
    for parts in hostile::parts() {
        // The first alone: what fuzzing changes in it has to be survived without the others.
        write("gguf", &parts.case.name, &parts.case.bytes)?;
    }
    for (kind, cases) in kinds {
        for case in cases {
            write(kind, &case.name, &case.bytes)?;
        }
    }
    Ok(())
}
