//! Readers map files, so the bytes go through one in the temporary folder (put it in memory: TMPDIR=/dev/shm).

use std::path::Path;
use std::sync::LazyLock;

use tempfile::TempPath;

static FILE: LazyLock<TempPath> = LazyLock::new(|| {
    tempfile::NamedTempFile::new().expect("a writable temporary folder").into_temp_path()
});

/// The path of a file that holds `data`.
pub fn of(data: &[u8]) -> &'static Path {
    std::fs::write(&*FILE, data).expect("room in the temporary folder");
    &FILE
}
