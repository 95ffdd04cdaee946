//! The corpus of bad files through the reader of calibrations. A program of its own with one test, because the
//! limit on memory is the process's.

use std::path::Path;

use calibration::Calibration;
use fixtures::hostile::check::all_refused;
use fixtures::hostile::{self, good};
use format::{MatrixId, Role};

fn read(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let file = Calibration::open(path)?;
    for role in Role::PLAIN {
        file.input(MatrixId { layer: 0, role }.input())?;
    }
    Ok(())
}

#[test]
fn bad_files_are_refused_in_one_line_and_with_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let good = good::calibration().bytes();
    all_refused(folder.path(), &good, &hostile::calibrations(), read);
    all_refused(folder.path(), &good, &hostile::structure(), read);
}
