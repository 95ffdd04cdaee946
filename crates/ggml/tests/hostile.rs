//! The corpus of bad files through the readers of this crate. A program of its own with one test, because the
//! limit on memory is the process's.

use fixtures::hostile::check::{all_parts_refused, all_refused};
use fixtures::hostile::{self, good};
use ggml::gguf::GgufFile;
use ggml::imatrix::Imatrix;

#[test]
fn bad_files_are_refused_in_one_line_and_with_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = |path: &std::path::Path| Ok(GgufFile::open(path).map(drop)?);
    let model = good::model().bytes();
    all_refused(folder.path(), &model, &hostile::structure(), gguf);
    all_refused(folder.path(), &model, &hostile::truncated(), gguf);
    all_parts_refused(folder.path(), &hostile::parts(), gguf);
    all_refused(folder.path(), &model, &hostile::foreign(), gguf);
    let weights = [("gate", good::N_EMBD), ("up", good::N_EMBD), ("down", good::N_FF)];
    let imatrix = |path: &std::path::Path| {
        let file = Imatrix::open(path)?;
        for (role, n) in weights {
            file.importance(&format!("blk.0.ffn_{role}.weight"), n, None)?;
        }
        Ok(())
    };
    all_refused(folder.path(), &good::imatrix().bytes(), &hostile::imatrices(), imatrix);
    all_refused(folder.path(), &good::old_imatrix(), &hostile::old_imatrices(), imatrix);
}
