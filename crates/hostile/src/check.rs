//! What every reader has to do with a bad file.

use std::path::Path;

use crate::{Case, Parts, memory};

/// Gives every case to `read` as a file in `folder`, after `good`, which must be taken: what a reader prepares the first
/// time it is used does not count. A bad file must be refused with one line that says what the case
/// expects, and with no more memory than the file's size and [`memory::CONSTANT`].
///
/// # Panics
/// With the names of all cases for which that is not so.
pub fn all_refused(
    folder: &Path,
    good: &[u8],
    cases: &[Case],
    read: impl Fn(&Path) -> Result<(), Box<dyn std::error::Error>>,
) {
    assert!(!cases.is_empty());
    let path = folder.join("bad.gguf");
    std::fs::write(&path, good).expect("a writable folder");
    read(&path).expect("the file that the bad ones were made from");
    // Threads that it started may still be about to reserve their stacks and heaps.
    rayon::broadcast(|_| drop(std::hint::black_box(vec![0u8; 64])));
    let mut faults = Vec::new();
    for case in cases {
        std::fs::write(&path, &case.bytes).expect("a writable folder");
        faults.extend(refusal(case, case.bytes.len(), &path, &read));
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// The same for models in parts, each in a folder of its own within `folder`.
///
/// # Panics
/// As [`all_refused`].
pub fn all_parts_refused(
    folder: &Path,
    cases: &[Parts],
    read: impl Fn(&Path) -> Result<(), Box<dyn std::error::Error>>,
) {
    assert!(!cases.is_empty());
    let mut faults = Vec::new();
    for (i, parts) in cases.iter().enumerate() {
        let folder = folder.join(i.to_string());
        let path = parts.write(&folder);
        faults.extend(refusal(&parts.case, parts.n_bytes(), &path, &read));
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// What is wrong with how `read` takes `case`, whose files of `n_bytes` in all begin with the one at `path`.
fn refusal(
    case: &Case,
    n_bytes: usize,
    path: &Path,
    read: &impl Fn(&Path) -> Result<(), Box<dyn std::error::Error>>,
) -> Option<String> {
    println!("{}", case.name);
    // The file is mapped, and may be copied once.
    let room = 2 * n_bytes as u64 + memory::CONSTANT;
    let said = match memory::limited(room, || read(path).map_err(|e| e.to_string())) {
        Ok(()) => "nothing".to_owned(),
        Err(said) => said,
    };
    fault(case, &said)
}

/// What is wrong with refusing `case` by `said`.
#[must_use]
pub fn fault(case: &Case, said: &str) -> Option<String> {
    let complete = case.says.iter().all(|part| said.contains(part));
    let one_line = said.lines().count() == 1 && !said.contains(char::is_control);
    (!complete || !one_line)
        .then(|| format!("{}: expected one line with {:?}, got: {said:?}", case.name, case.says))
}
